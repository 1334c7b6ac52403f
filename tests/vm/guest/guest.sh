#!/bin/busybox sh
# The guest after its root is there: devices, cgroups, sysctls; runs /run/vm/command as $USER_NAME and powers off.
# Owns: the result port. First line on it: the begin marker; last line: the status marker; between them the command's
# stdout and stderr and nothing else (the kernel and systemd talk to the serial console).
# Refuses to guess: a preparation that fails is said inside the output, and the command still runs and finds out.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
B=/run/vm/busybox
. /run/vm/parameters
for port in /sys/class/virtio-ports/*; do
	[ "$($B cat "$port/name")" = result ] && exec >"/dev/${port##*/}" 2>&1
done
uptime_s() { $B cut -d' ' -f1 /proc/uptime; }
echo "@@$NONCE begin $(uptime_s)"

[ -e /dev/fd ] || { $B ln -s /proc/self/fd /dev/fd; $B ln -s fd/0 /dev/stdin; $B ln -s fd/1 /dev/stdout; $B ln -s fd/2 /dev/stderr; }
$B hostname vm
$B ip link set lo up
for fs in securityfs:/sys/kernel/security bpf:/sys/fs/bpf tracefs:/sys/kernel/tracing debugfs:/sys/kernel/debug; do
	$B grep -q " ${fs#*:} " /proc/mounts || $B mount -t "${fs%%:*}" none "${fs#*:}"
done
for disk in /sys/block/vd*; do # /dev/vm/SERIAL, open to the plain user too
	[ -e "$disk/serial" ] || continue
	$B mkdir -p /dev/vm
	$B ln -s "../${disk##*/}" "/dev/vm/$($B cat "$disk/serial")"
	$B chmod 666 "/dev/${disk##*/}"
done
[ -e /dev/vm/swap ] && $B mkswap /dev/vm/swap >/dev/null && $B swapon /dev/vm/swap
[ -e /proc/sys/vm/nr_hugepages ] && echo 8 >/proc/sys/vm/nr_hugepages

mount_v1() { # one hierarchy per controller, as hosts without systemd have them; a controller the kernel lacks is left out
	$B mount -t tmpfs -o mode=755 none /sys/fs/cgroup
	for controller in cpuset cpu cpuacct blkio memory devices freezer pids hugetlb; do
		$B grep -q "^$controller	" /proc/cgroups || continue
		$B mkdir "/sys/fs/cgroup/$controller"
		$B mount -t cgroup -o "$controller" none "/sys/fs/cgroup/$controller"
	done
	$B mkdir /sys/fs/cgroup/systemd
	$B mount -t cgroup -o none,name=systemd none /sys/fs/cgroup/systemd
}
case $CGROUP in
v2)
	$B mount -t cgroup2 none /sys/fs/cgroup
	for controller in $($B cat /sys/fs/cgroup/cgroup.controllers); do
		echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
	done
	;;
v1) mount_v1 ;;
hybrid)
	mount_v1
	$B mkdir /sys/fs/cgroup/unified
	$B mount -t cgroup2 none /sys/fs/cgroup/unified
	;;
esac
for setting in $SYSCTLS; do echo "${setting#*=}" >"/proc/sys/$($B echo "${setting%%=*}" | $B tr . /)"; done

cd "$DIRECTORY" || cd /
case $USER_NAME:$CGROUP in
root:*) /bin/sh /run/vm/command </dev/null & ;;
# A login session of logind's, as ssh or a desktop would give: the user manager, its bus, its own part of the tree.
*:systemd) /usr/bin/systemd-run --quiet --pipe --wait --uid="$USER_NAME" -p PAMName=login -p WorkingDirectory="$PWD" /bin/sh /run/vm/command </dev/null & ;;
*) /usr/bin/setpriv --reuid "$USER_NAME" --regid "$USER_NAME" --init-groups -- env HOME="/home/$USER_NAME" /bin/sh /run/vm/command </dev/null & ;;
esac
wait $!
status=$?
echo
echo "@@$NONCE end $status $(uptime_s)"
$B sync
[ "$CGROUP" = systemd ] && systemctl poweroff --force --force
$B sleep 0.2
$B poweroff -f

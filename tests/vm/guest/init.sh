#!/bin/busybox sh
# The guest's first minute, in the initramfs: modules, the root of the host under an overlay, the shares; then switch_root.
# Owns: everything before the real root. Refuses to go on without a root: it says why on the console and powers off.
# The overlay's upper layer is a tmpfs: whatever the guest writes is gone with it, the host's files are never written.
B=/bin/busybox
fail() { echo "vm: $*"; $B poweroff -f; $B sleep 9; }
mount9p() { $B mount -t 9p "$1" "$2" -o "ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any"; }
overlay() { # NAME TARGET: /ro/NAME below a writable layer of its own
	$B mkdir -p "/rw/$1/upper" "/rw/$1/work"
	$B mount -t overlay overlay -o "lowerdir=/ro/$1,upperdir=/rw/$1/upper,workdir=/rw/$1/work" "$2"
}

$B mkdir -p /proc /sys /dev /ro/root /rw /new
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev
for module in $($B cat /modules.order); do $B insmod "/modules/$module"; done
. /parameters

$B mount -t tmpfs -o mode=755 tmpfs /rw
mount9p root /ro/root || fail "no root share"
overlay root /new || fail "no overlay"
cd /new || fail "no root"
$B mkdir -p proc sys dev run tmp var/tmp isolate
$B mount -t tmpfs -o mode=755 tmpfs isolate
$B mount -t tmpfs -o mode=755 tmpfs run
$B mount -t tmpfs -o mode=1777 tmpfs tmp
$B mount -t tmpfs -o mode=1777 tmpfs var/tmp # an overlay holds no other overlay's changes
for share in $SHARES; do # tag:target:mode, e.g. share0:/isolate/checkout:overlay
	tag=${share%%:*} rest=${share#*:}
	$B mkdir -p "/ro/$tag" ".${rest%:*}"
	mount9p "$tag" "/ro/$tag" || fail "no share $share"
	case ${rest##*:} in
	overlay) overlay "$tag" ".${rest%:*}" || fail "no overlay on $share" ;;
	*) $B mount --move "/ro/$tag" ".${rest%:*}" || fail "cannot move $share" ;;
	esac
done
for directory in $OPEN_DIRECTORIES; do $B chmod a+x ".$directory"; done
$B mkdir -p dev/pts dev/shm run/vm
$B mount --move /proc proc
$B mount --move /sys sys
$B mount --move /dev dev
$B mkdir -p dev/pts dev/shm
$B mount -t devpts -o ptmxmode=666,gid=5 devpts dev/pts
$B mount -t tmpfs -o mode=1777 shm dev/shm
$B cp /bin/busybox /command /parameters /guest.sh run/vm/
$B chmod 755 run/vm run/vm/*

# A plain user that every root has, whatever its own passwd says.
echo "isolate:x:4000:4000:plain user:/home/isolate:/bin/sh" >>etc/passwd
echo "isolate:x:4000:" >>etc/group
[ -e etc/shadow ] && echo "isolate:*:19000:0:99999:7:::" >>etc/shadow
$B mkdir -p home/isolate && $B chown 4000:4000 home/isolate
echo vm >etc/hostname

if [ "$CGROUP" = systemd ]; then
	mask="serial-getty@ttyS0 getty@tty1 systemd-timesyncd systemd-networkd-wait-online apt-daily apt-daily-upgrade"
	$B mkdir -p run/systemd/system/multi-user.target.wants
	for service in $mask; do $B ln -s /dev/null "run/systemd/system/$service.service"; done
	$B cp /vm.service run/systemd/system/
	$B ln -s ../vm.service run/systemd/system/multi-user.target.wants/
	exec $B switch_root /new /lib/systemd/systemd
fi
exec $B switch_root /new /run/vm/busybox sh /run/vm/guest.sh

#!/bin/bash
# Builds the data plane, starts bin/perf-test, makes synthetic traffic (its generator, ping, iperf3), captures, asserts, reports.
# Everything runs on a veth in namespaces made here. Exit status 0: every assertion held.
#   bash tests/performance/benchmark_test.sh [seconds]
set -u
cd "$(dirname "$0")/../.." || exit 2
seconds=${1:-10}
python=.venv/bin/python
work=$(mktemp -d)
failures=0

say() { printf '%s\n' "$*"; }
assert() { # text, condition...
	local text=$1
	shift
	if "$@"; then say "ok      $text"; else say "FAILED  $text"; failures=$((failures + 1)); fi
}
has() { command -v "$1" >/dev/null; }
finish() { rm -rf "$work"; }
trap finish EXIT

say "== build"
make -s perf-test || exit 2
make -s -C bpf test || exit 2
for tool in ping iperf3; do
	assert "$tool is installed (apt-get install iputils-ping iperf3)" has "$tool"
done

say "== perf-test, its own generator, $seconds s"
bin/perf-test --duration "$seconds" --interval 2 >"$work/generator.txt" 2>&1
status=$?
cat "$work/generator.txt"
assert "every generated frame was counted" test "$status" = 0
lines=$(grep -c 'Kpackets/s .*p99' "$work/generator.txt")
assert "statistics were printed ($lines lines)" test "$lines" -ge 2
rate=$(sed -n 's/^\([0-9]*\) Kpackets.s over.*/\1/p' "$work/generator.txt")
assert "at least 100 Kpackets/s by the clock, the generator among them (${rate:-0})" test "${rate:-0}" -ge 100
# The required 1.2 M/s is of a core: of the CPU time that making, judging and counting take, not of the clock others share.
core=$(sed -n 's/.*; \([0-9]*\)\.\([0-9][0-9]\) M packets per second of one core.*/\1.\2/p' "$work/generator.txt")
assert "at least 1.20 M packets/s of one core's time (${core:-0})" test "$((10#0${core/./}))" -ge 120

say "== perf-test at 100 000 packets/s: CPU"
bin/perf-test --duration 5 --rate 100000 >"$work/paced.txt" 2>&1
assert "paced run counted every frame" test $? = 0
tail -4 "$work/paced.txt"

say "== ping and iperf3 under a policy, and while perf-test runs: counts compared with what they say"
"$python" tests/performance/real_traffic.py "$seconds" >"$work/real.txt" 2>&1
status=$?
cat "$work/real.txt"
assert "counts of the policy and of the running perf-test are what ping and iperf3 sent" test "$status" = 0

say "== left behind"
assert "no interface of ours" test -z "$(ip -o link 2>/dev/null | grep -E ': iso[0-9a-f]+')"
assert "no cgroup of ours" test -z "$(find /sys/fs/cgroup -maxdepth 3 -name 'pytest-isolate-perf-*' 2>/dev/null)"
say "$([ "$failures" = 0 ] && echo "all assertions held" || echo "$failures assertions FAILED")"
exit $((failures > 0))

"""The filters, decided by an interpreter of classic BPF for both machines; the kernel's own decision is tests/kernel/test_hardening.py."""

from __future__ import annotations

import errno
import struct

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.hardening import SeccompProfile
from pytest_isolate.kernel import seccomp, syscalls

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
every_machine = pytest.mark.parametrize("machine", ARCHITECTURES)


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would answer. Source: linux/filter.h, kernel/seccomp.c."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    instructions = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, jt, jf, k = instructions[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, k)
            case 0x05:
                at += k
            case 0x15:
                at += jt if accumulator == k else jf
            case 0x35:
                at += jt if accumulator >= k else jf
            case 0x45:
                at += jt if accumulator & k else jf
            case 0x54:
                accumulator &= k
            case 0x06:
                return k
            case _:
                raise AssertionError(f"instruction {code:#x}")


def answer(profile: str | SeccompProfile, machine: str, call: str, *arguments: int) -> int:
    program = seccomp.compile_profile(profile, machine)
    return decide(program, ARCHITECTURES[machine], syscalls.numbers(machine)[call], *arguments)


@every_machine
def test_default_answers_every_system_call_as_its_table_says(machine: str) -> None:
    looks_at_arguments = {"clone", "socket", "ptrace", "ioctl"}
    unknown_to_it = {"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"}
    for call in syscalls.numbers(machine):
        if call in looks_at_arguments:
            continue
        refused = ENOSYS if call in unknown_to_it else EPERM if call in seccomp.DEFAULT_REFUSES else ALLOW
        assert answer("default", machine, call) == refused, call


@every_machine
def test_default_looks_at_arguments(machine: str) -> None:
    def found(call: str, *arguments: int) -> int:
        return answer("default", machine, call, *arguments)

    assert found("clone", 0x3D0F00) == ALLOW  # pthread_create
    assert found("clone", 17) == ALLOW  # fork
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert found("clone", namespace | 17) == EPERM
    assert found("ptrace", 0) == ALLOW
    assert (found("ptrace", 16), found("ptrace", 0x4206)) == (EPERM, EPERM)
    assert (found("ioctl", 0, 0x5413), found("ioctl", 0, 0x5412), found("ioctl", 0, 0x541C)) == (ALLOW, EPERM, EPERM)
    assert found("ioctl", 0, 0x5412 | 1 << 32) == EPERM  # the kernel looks at 32 bits (CVE-2019-10063)
    stream_cloexec = 1 | 0o2000000
    for family in (1, 2, 10, 16):
        assert found("socket", family, stream_cloexec) == ALLOW
    assert found("socket", 16, 3) == ALLOW  # netlink is raw by custom
    for family in (2, 10):
        assert (found("socket", family, 3 | 0o2000000), found("socket", family, 10)) == (EPERM, EPERM)
    for family in (0, 3, 15, 17, 29, 38, 40, 46):
        assert found("socket", family, 3) == ERRNO | errno.EAFNOSUPPORT


BASES = pytest.mark.parametrize("base", ["none", "default"])


@every_machine
@BASES
def test_no_sockets_but_af_unix(machine: str, base: str) -> None:
    unix = SeccompProfile(name="unix", base=base, sockets="unix")  # type: ignore[arg-type]
    for kind in (1, 2, 5):
        assert answer(unix, machine, "socket", 1, kind) == ALLOW
    for family in (0, 2, 3, 10, 15, 16, 17, 29, 38, 40, 43, 44, 46):
        for kind in (1, 2, 3, 10):
            assert answer(unix, machine, "socket", family, kind) == EPERM, (family, kind)
    assert answer(unix, machine, "socket", 2 | 1 << 32, 1) == EPERM  # the kernel looks at 32 bits
    assert answer(unix, machine, "io_uring_setup", 8) == ENOSYS
    assert answer(unix, machine, "connect") == answer(unix, machine, "getpid") == ALLOW
    assert answer(unix, machine, "mount") == (EPERM if base == "default" else ALLOW)


@every_machine
@BASES
def test_tcp_alone_and_no_way_to_connect_without_connect(machine: str, base: str) -> None:
    tcp = SeccompProfile(name="tcp", base=base, sockets="tcp")  # type: ignore[arg-type]
    for family in (2, 10):
        assert answer(tcp, machine, "socket", family, 1 | 0o2000000, 0) == ALLOW
        assert answer(tcp, machine, "socket", family, 1, 6) == ALLOW
        for kind, protocol in ((1, 132), (1, 262), (1, 256), (2, 0), (2, 17), (2, 1), (3, 255), (5, 132), (10, 0)):
            assert answer(tcp, machine, "socket", family, kind, protocol) == EPERM, (family, kind, protocol)
    assert answer(tcp, machine, "socket", 1, 2) == answer(tcp, machine, "socket", 16, 3) == ALLOW
    for family in (17, 40, 43, 44):
        assert answer(tcp, machine, "socket", family, 1) == EPERM
    fast_open, other = 0x20000000, 0x4000
    for call, before in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        assert answer(tcp, machine, call, *[0] * before, other) == ALLOW
        assert answer(tcp, machine, call, *[0] * before, other | fast_open) == ERRNO | errno.EOPNOTSUPP
    assert answer(tcp, machine, "io_uring_enter", 8) == ENOSYS
    assert answer(tcp, machine, "mount") == (EPERM if base == "default" else ALLOW)


@every_machine
def test_what_a_profile_refuses_stays_refused_whatever_sockets_may_do(machine: str) -> None:
    own = SeccompProfile(name="own", refuse={"socket": "KILL"}, sockets="tcp")
    assert answer(own, machine, "socket", 1, 1) == KILL
    few = SeccompProfile(name="few", only=frozenset({"sendto"}), sockets="tcp")
    assert answer(few, machine, "socket", 1, 1) == EPERM
    assert answer(few, machine, "sendto", 0, 0, 0, 0) == ALLOW


@every_machine
def test_another_architecture_ends_the_process(machine: str) -> None:
    program = seccomp.compile_profile("default", machine)
    for arch in (0x40000003, 0x40000028, *(set(ARCHITECTURES.values()) - {ARCHITECTURES[machine]})):
        assert decide(program, arch, 1) == KILL


def test_x32_calls_do_not_exist() -> None:
    program = seccomp.compile_profile("default", "x86_64")
    for number in (0x40000000, 0x40000000 | 165, 0xFFFFFFFF):
        assert decide(program, ARCHITECTURES["x86_64"], number) == ENOSYS


@every_machine
def test_default_stays_small_and_shallow(machine: str) -> None:
    assert len(seccomp.compile_profile("default", machine)) // 8 <= 96  # about a microsecond each to install


def test_none_is_no_filter() -> None:
    assert seccomp.compile_profile("none") == b""


@every_machine
def test_a_profile_of_ones_own_adds_to_its_base(machine: str) -> None:
    own = SeccompProfile(name="own", base="default", refuse={"getppid": "EXDEV", "kcmp": "KILL"})
    assert answer(own, machine, "getppid") == ERRNO | errno.EXDEV
    assert answer(own, machine, "kcmp") == KILL
    assert answer(own, machine, "mount") == EPERM
    assert answer(own, machine, "getpid") == ALLOW


@every_machine
def test_a_profile_that_allows_only_some_refuses_all_else(machine: str) -> None:
    names = sorted(syscalls.numbers(machine))
    kept = frozenset(names[::2])  # as many segments as can be: jumps beyond 255 instructions
    own = SeccompProfile(name="only", only=kept, otherwise="ENOSYS")
    for call in names:
        assert answer(own, machine, call) == (ALLOW if call in kept else ENOSYS), call
    program = seccomp.compile_profile(own, machine)
    assert len(program) // 8 <= 4096
    named = set(syscalls.numbers(machine).values())
    for number in set(range(600)) - named:
        assert decide(program, ARCHITECTURES[machine], number) == ENOSYS, number


def test_words_without_meaning_are_errors() -> None:
    with pytest.raises(PolicyError, match="Did you mean 'mount'"):
        seccomp.compile_profile(SeccompProfile(name="own", refuse={"mounte": "EPERM"}), "x86_64")
    with pytest.raises(PolicyError, match="EPREM.* no errno"):
        SeccompProfile(name="own", refuse={"mount": "EPREM"})
    with pytest.raises(PolicyError, match="no base"):
        SeccompProfile(name="own", base="docker")  # type: ignore[arg-type]

"""The doctor's answers: as root, as a plain user, under a filter like Docker's, and nothing stays behind."""

from __future__ import annotations

import dataclasses
import errno
import os
import platform
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_isolate.errors import PolicyError
from pytest_isolate.kernel import attempts, library, probe
from pytest_isolate.kernel.plan import Plan
from pytest_isolate.kernel.throwaway import Refused, in_child
from tests.conftest import require
from tests.host_state import observe, remains
from tests.kernel.launching import forked, helper
from tests.kernel.throwaway import throwaway

NOBODY = 65534
#: What needs neither privilege nor namespaces: to be had in every place these tests run in.
_FOR_EVERYONE = ("rlimits", "pidfd", "no_new_privs", "seccomp", "close_range")

#: clone, unshare, mount, setns. Source: asm/unistd.h.
_NUMBERS = {"x86_64": (56, 272, 165, 308), "aarch64": (220, 97, 40, 268)}
_ANY_NAMESPACE = 0x7E020000
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_CLONE3 = 435


def row(code: int, jt: int, jf: int, k: int) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def refusing(calls: dict[int, int], *, namespaces_of: int = -1) -> bytes:
    """A filter that answers ``calls`` (number -> errno), and EPERM to clone with any namespace flag."""
    program = [row(0x20, 0, 0, 0)]
    for number, error in calls.items():
        program += [row(0x15, 0, 1, number), row(0x06, 0, 0, _ERRNO | error)]
    if namespaces_of >= 0:
        program += [
            row(0x15, 0, 3, namespaces_of),
            row(0x20, 0, 0, 16),  # the low half of the first argument
            row(0x45, 0, 1, _ANY_NAMESPACE),
            row(0x06, 0, 0, _ERRNO | errno.EPERM),
        ]
    return b"".join([*program, row(0x06, 0, 0, _ALLOW)])


def like_docker(clone3_errno: int = errno.ENOSYS) -> bytes:
    """Docker's default profile, as far as it matters here: no namespaces, no mounts, no clone3."""
    clone, unshare, mount, setns = _NUMBERS[platform.machine()]
    calls = {_CLONE3: clone3_errno, unshare: errno.EPERM, mount: errno.EPERM, setns: errno.EPERM}
    return refusing(calls, namespaces_of=clone)


def no_mounts() -> bytes:
    """As AppArmor does to plain users: namespaces are made, mounts in them are refused."""
    _, _, mount, _ = _NUMBERS[platform.machine()]
    return refusing({mount: errno.EACCES})


def plain_answers() -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(feature) for name, feature in probe.capabilities().items()}


def under(program: bytes) -> dict[str, dict[str, Any]]:
    """Every answer of a process that runs under the filter."""
    if platform.machine() not in _NUMBERS:
        require("seccomp-numbers", False, f"not written down for {platform.machine()}")
    # The pipe holds 64 KiB: enough for every answer. No session of its own is needed.
    answers: dict[str, dict[str, Any]] = forked(Plan(seccomp=program, no_new_privs=True), plain_answers).json
    return answers


def test_every_name_has_an_answer_and_every_refusal_says_where_and_why() -> None:
    found = probe.capabilities()
    assert tuple(found) == probe.names()
    for feature in found.values():
        assert feature.meaning
        if not feature:
            assert feature.step, feature
            assert feature.reason, feature


@pytest.mark.parametrize("name", _FOR_EVERYONE)
def test_what_needs_no_privilege_is_available(name: str) -> None:
    assert probe.feature(name).available, probe.feature(name)


def test_as_root_everything_but_resource_raising_and_bpf_is_available_on_a_full_host() -> None:
    require("root", os.geteuid() == 0, "not root")
    found = throwaway(plain_answers)
    require("namespaces", found["namespace_pid"]["available"], str(found["namespace_pid"]))
    refused = {name for name, answer in found.items() if not answer["available"] and not name.startswith("cgroup_")}
    assert refused <= {"rlimits_raise", "bpf", "overlayfs", "landlock", "namespace_time", "clone3"}


def test_an_installation_that_plain_users_may_not_enter_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root's home is: what root has installed there is of no use to others, whatever the kernel allows them."""
    require("root", os.geteuid() == 0, "becoming another user takes root")
    closed = tmp_path / "root"
    shutil.copytree(library.find("isolate-init").parent, closed / "_native")
    monkeypatch.setattr(library, "_DIRECTORY", closed / "_native")
    closed.chmod(0o700)
    answer = helper(lambda: dataclasses.asdict(probe.feature("sandbox_plain_user")))  # in a child: answers are kept
    assert not answer["available"]
    assert f"user {NOBODY} may not enter" in answer["reason"], answer
    assert "where every user may read it" in answer["remedy"], answer


def test_an_installation_on_a_noexec_mount_is_named_with_its_step_and_what_to_do() -> None:
    require("root", os.geteuid() == 0, "a plain user mounts nothing over an installation")
    directory = str(library.find("isolate-init").parent)

    def over() -> None:
        for arguments in (["--bind", directory, directory], ["-o", "remount,bind,noexec", directory]):
            subprocess.run(["mount", *arguments], check=True)

    told = throwaway(plain_answers, prepare=over)["namespace_pid"]
    assert (told["available"], told["step"], told["errno"]) == (False, "init", errno.EACCES)
    assert told["remedy"].endswith("not on a noexec mount")


def test_an_available_namespace_agrees_with_the_kernel_about_itself() -> None:
    require("namespaces", probe.feature("namespace_uts").available, str(probe.feature("namespace_uts")))
    outside = os.readlink("/proc/self/ns/uts")
    inside = in_child(attempts.plan_of(attempts.Namespace.UTS), lambda: os.readlink("/proc/self/ns/uts"))
    assert inside.startswith("uts:[")
    assert inside != outside


def test_a_plain_user_is_told_what_to_do_about_cgroups() -> None:
    require("root", os.geteuid() == 0, "becoming another user takes root")
    found = helper(plain_answers, uid=NOBODY)
    require("user-namespaces", found["namespace_user"]["available"], str(found["namespace_user"]))
    assert found["sandbox"]["available"], found["sandbox"]
    assert found["namespace_pid"]["available"]
    memory = found["cgroup_memory"]
    assert not memory["available"]
    assert memory["errno"] in (errno.EACCES, errno.EPERM, errno.EROFS), memory
    assert "cgroup" in memory["remedy"] or "systemd" in memory["remedy"], memory


def test_under_a_filter_like_dockers_the_step_is_named_and_the_filter_blamed() -> None:
    found = throwaway(lambda: under(like_docker()), who="root" if os.geteuid() == 0 else "user")
    for name in ("sandbox", "sandbox_plain_user", "namespace_pid", "namespace_net", "namespaces"):
        answer = found[name]
        assert not answer["available"], answer
        assert answer["step"] in ("clone", "unshare"), answer
        assert answer["errno"] == errno.EPERM, answer
        assert "seccomp" in answer["remedy"], answer
    assert (found["clone3"]["step"], found["clone3"]["errno"]) == ("clone3", errno.ENOSYS)
    assert "clone is used instead" in found["clone3"]["remedy"]
    for name in _FOR_EVERYONE:  # the positive control: the filter refuses what it should, and nothing else
        assert found[name]["available"], found[name]


def test_a_filter_that_answers_clone3_with_eperm_is_recognised() -> None:
    found = under(like_docker(clone3_errno=errno.EPERM))
    assert (found["clone3"]["available"], found["clone3"]["errno"]) == (False, errno.EPERM)
    assert "update the container engine" in found["clone3"]["remedy"]


def test_namespaces_whose_mounts_are_refused_are_no_sandbox() -> None:
    """AppArmor's trap: a probe that stops after the clone would say yes."""
    require("namespaces", probe.feature("namespace_pid").available, str(probe.feature("namespace_pid")))
    found = under(no_mounts())
    assert found["namespace_pid"]["available"]
    assert found["namespace_uts"]["available"]
    for name in ("sandbox", "proc"):
        answer = found[name]
        assert not answer["available"]
        assert (answer["step"], answer["errno"]) == ("mounts[0]", errno.EACCES), answer
        assert answer["remedy"], answer


def test_answers_are_kept_for_the_process_and_not_for_its_children() -> None:
    name = "namespace_pid"
    assert probe.feature(name) is probe.feature(name)
    require("namespaces", probe.feature(name).available, str(probe.feature(name)))
    assert not under(like_docker())[name]["available"]
    assert probe.feature(name).available


def test_an_unknown_feature_is_an_error_that_suggests_the_nearest() -> None:
    with pytest.raises(PolicyError, match=r"(?i)did you mean 'namespace_pid'"):
        probe.feature("namespace_pdi")


def test_a_child_that_hangs_is_given_up_after_the_deadline() -> None:
    def hang() -> str:
        import time

        time.sleep(60)
        return "never"

    with pytest.raises(Refused) as refused:
        in_child(Plan(), hang, deadline_s=0.2)
    assert (refused.value.step, refused.value.why) == ("probe", "no answer within 0.2 s")


def test_a_child_that_dies_is_told_apart_from_one_that_is_refused() -> None:
    def die() -> str:
        os.kill(os.getpid(), 9)
        return "never"

    with pytest.raises(Refused) as refused:
        in_child(Plan(), die)
    assert refused.value.step == "probe"
    assert refused.value.why == "its child killed by SIGKILL"


def test_probing_leaves_the_host_as_it_was(tmp_path: Path) -> None:
    before = observe()
    helper(plain_answers)  # in a process that has no answers yet
    assert remains(before) == []

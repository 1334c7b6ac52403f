"""A remedy fits the place: root or plain, container or not, and the switch that is off."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pytest_isolate.cli import ci
from pytest_isolate.kernel.probe import Feature
from pytest_isolate.kernel.remedies import Case, remedy
from pytest_isolate.kernel.surroundings import Surroundings, observe

PLAIN = Surroundings(uid=1000)
ROOT = Surroundings(uid=0, can_admin=True)


def place(base: Surroundings, **facts: object) -> Surroundings:
    import dataclasses

    return dataclasses.replace(base, **facts)


@pytest.mark.parametrize(
    ("feature", "step", "number", "where", "words"),
    [
        (
            "sandbox",
            "mounts[0]",
            errno.EACCES,
            place(PLAIN, apparmor_userns=1),
            "apparmor_restrict_unprivileged_userns=0",
        ),
        ("sandbox", "maps", errno.EPERM, place(PLAIN, apparmor_userns=1), "apparmor_restrict_unprivileged_userns=0"),
        ("sandbox_plain_user", "maps", errno.EPERM, place(ROOT, apparmor_userns=1), "apparmor_restrict"),
        ("namespace_pid", "clone", errno.EPERM, place(PLAIN, userns_clone=0), "kernel.unprivileged_userns_clone=1"),
        ("namespace_pid", "clone", errno.ENOSPC, place(PLAIN, max_user_namespaces=0), "user.max_user_namespaces=10000"),
        ("namespace_pid", "clone", errno.ENOSPC, place(PLAIN, max_user_namespaces=99), "nest fewer"),
        ("namespace_pid", "clone", errno.EPERM, place(ROOT, container="docker", seccomp=True), "seccomp=unconfined"),
        ("namespace_pid", "clone", errno.EPERM, place(PLAIN, seccomp=True), "outside of it"),
        ("namespace_pid", "clone", errno.EPERM, place(ROOT, container="docker"), "--cap-add SYS_ADMIN"),
        ("namespace_pid", "clone", errno.EPERM, PLAIN, "as root"),
        ("namespace_pid", "clone", errno.EPERM, place(ROOT, can_admin=False), "this root has no CAP_SYS_ADMIN"),
        ("proc", "mounts[1]", errno.EPERM, place(ROOT, container="docker"), "systempaths=unconfined"),
        ("proc", "mounts[1]", errno.EPERM, place(ROOT, container="podman"), "unmask=ALL"),
        ("rlimits_raise", "setrlimit", errno.EPERM, ROOT, "CAP_SYS_RESOURCE"),
        ("landlock", "landlock", errno.ENOSYS, PLAIN, "Linux 5.13"),
        ("landlock", "landlock", errno.EOPNOTSUPP, PLAIN, "lsm="),
        ("bpf", "bpf-load", errno.EPERM, PLAIN, "CAP_BPF"),
        (
            "cgroup_memory",
            "cgroup mkdir",
            errno.EROFS,
            place(ROOT, container="docker", cgroup_read_only=True),
            "--privileged",
        ),
        ("cgroup_memory", "cgroup mkdir", errno.EACCES, place(PLAIN, user_bus=True), "systemd-run --user"),
        ("cgroup_memory", "cgroup mkdir", errno.EACCES, place(PLAIN, systemd=True), "enable-linger"),
        ("cgroup_memory", "cgroup mkdir", errno.EACCES, PLAIN, "as root"),
    ],
)
def test_the_remedy_names_what_is_in_the_way(
    feature: str, step: str, number: int, where: Surroundings, words: str
) -> None:
    assert words in remedy(Case(feature=feature, step=step, errno=number, place=where))


@pytest.mark.parametrize("facts", [{}, {"seccomp": True}, {"userns_clone": 0}, {"container": "docker"}])
@pytest.mark.parametrize("step", ["clone", "unshare", "maps"])
def test_who_is_root_already_is_not_told_to_become_it(step: str, facts: dict[str, object]) -> None:
    powerless = place(ROOT, can_admin=False, **facts)
    advice = remedy(Case(feature="", step=step, errno=errno.EPERM, place=powerless))
    assert advice
    assert "as root" not in advice


def test_where_nothing_is_known_nothing_is_advised() -> None:
    assert remedy(Case(feature="pidfd", step="pidfd_open", errno=errno.EIO, place=ROOT)) == ""


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_a_docker_container_on_ubuntu_is_recognised_by_its_files(tmp_path: Path) -> None:
    found = observe(
        tree(
            tmp_path,
            {
                ".dockerenv": "",
                "proc/self/status": "Name:\tpython\nSeccomp:\t2\n",
                "proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
                "proc/sys/user/max_user_namespaces": "0\n",
                "proc/self/mountinfo": "31 22 0:28 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
            },
        ),
        {"GITHUB_ACTIONS": "true"},
    )
    assert (found.container, found.container_sign, found.runner) == ("docker", "/.dockerenv", "github")
    assert (found.seccomp, found.apparmor_userns, found.max_user_namespaces) == (True, 1, 0)
    assert found.userns_clone is None
    assert found.cgroup_read_only


def test_one_writable_cgroup_file_system_is_enough(tmp_path: Path) -> None:
    lines = (
        "31 22 0:28 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n"
        "32 22 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    assert not observe(tree(tmp_path, {"proc/self/mountinfo": lines}), {}).cgroup_read_only


def test_a_bare_machine_is_no_container(tmp_path: Path) -> None:
    found = observe(tree(tmp_path, {"proc/1/cgroup": "0::/init.scope\n", "run/systemd/system/x": ""}), {})
    assert (found.container, found.runner, found.systemd, found.user_bus) == ("", "", True, False)


@pytest.mark.parametrize(
    ("where", "lacking", "words"),
    [
        (place(PLAIN, runner="github", apparmor_userns=1), ("sandbox",), "sudo sysctl -w kernel.apparmor_restrict"),
        (place(PLAIN, runner="github"), ("cgroup_memory",), "systemd-run --user --scope -p Delegate=yes"),
        (place(ROOT, runner="github", container="docker"), ("sandbox",), "options: --security-opt seccomp=unconfined"),
        (place(ROOT, runner="gitlab", container="docker"), ("sandbox", "cgroup_memory"), "config.toml"),
        (place(ROOT, container="docker", seccomp=True), ("sandbox",), "docker run --rm"),
        (place(ROOT, container="docker"), ("cgroup_memory",), "--privileged --cgroupns=private"),
        (place(PLAIN, container="docker"), ("cgroup_memory",), "--user 0"),
        (
            place(PLAIN, container="docker", cgroup_read_only=True),
            ("cgroup_memory",),
            "--privileged --cgroupns=private",
        ),
        (place(ROOT, container="docker", seccomp=True), ("sandbox",), "python -m pytest --isolate-backend=landlock"),
        (place(PLAIN, userns_clone=0), ("sandbox",), "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        (PLAIN, (), "Nothing to add"),
    ],
)
def test_the_ci_advice_fits_the_runner(where: Surroundings, lacking: tuple[str, ...], words: str) -> None:
    assert words in ci.advice(where, features(lacking))


def features(lacking: tuple[str, ...]) -> dict[str, Feature]:
    names = ("sandbox", "cgroup_memory", "landlock", "seccomp_default")
    return {name: Feature(name=name, available=name not in lacking) for name in names}


@pytest.mark.parametrize("lacking", [(), ("cgroup_memory",), ("sandbox", "landlock")])
def test_landlock_is_not_advised_where_it_adds_nothing_or_is_not_there(lacking: tuple[str, ...]) -> None:
    assert "landlock" not in ci.advice(ROOT, features(lacking)).replace("lacking here: sandbox, landlock", "")

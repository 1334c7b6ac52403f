"""What to add to a CI configuration so that this runner can isolate: as text to paste.

Owns: one recipe per runner and lack. Refuses: to write files; a person reads what is granted before it is granted.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_isolate.kernel.remedies import CONTAINER_OPTIONS

if TYPE_CHECKING:
    from pytest_isolate.kernel.probe import Feature
    from pytest_isolate.kernel.surroundings import Surroundings

_CONTAINER = CONTAINER_OPTIONS + " --cap-add SYS_ADMIN"

_GITHUB_USER = """\
# .github/workflows/*.yml, before the step that runs pytest.
# Ubuntu 24.04 lets a plain user make a user namespace, and AppArmor then refuses every mount in it.
- name: Let a plain user make sandboxes
  run: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0
- run: python -m pytest --isolate"""

_LANDLOCK = """\
# Or with nothing changed: processes, seccomp and Landlock, without namespaces.
python -m pip install pytest-isolate-landlock
python -m pytest --isolate-backend=landlock"""

_GITHUB_CGROUPS = """\
# For memory, pids and cpu limits of a whole tree: a cgroup of the job's own, by the runner's systemd.
- run: |
    sudo loginctl enable-linger "$USER"
    export XDG_RUNTIME_DIR=/run/user/$(id -u)
    systemd-run --user --scope -p Delegate=yes python -m pytest --isolate"""

_GITHUB_CONTAINER = f"""\
# .github/workflows/*.yml, in the job.
container:
  image: YOUR-IMAGE
  options: {_CONTAINER}"""

_GITLAB = """\
# .gitlab-ci.yml needs nothing; the runner's /etc/gitlab-runner/config.toml does (its administrator decides):
[runners.docker]
  security_opt = ["seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"]
  cap_add = ["SYS_ADMIN"]"""

_GITLAB_LOW = """\
# .gitlab-ci.yml, where the runner cannot be changed: what can be enforced is, the header says what is not.
test:
  script:
    - python -m pytest --isolate --isolate-missing=warn"""

_DOCKER = f"""\
# The command that starts the container.
docker run --rm {_CONTAINER} YOUR-IMAGE python -m pytest --isolate"""

_DOCKER_CGROUPS = """\
# For limits of a whole tree the container needs writable cgroups.
docker run --rm --privileged --cgroupns=private YOUR-IMAGE python -m pytest --isolate"""

_DOCKER_ROOT = """\
# For limits of a whole tree: only root may make cgroups in this container.
docker run --rm --user 0 YOUR-IMAGE python -m pytest --isolate"""

_PLAIN_CGROUPS = """\
# For limits of a whole tree: a cgroup of the user's own, by systemd.
sudo loginctl enable-linger "$USER"
systemd-run --user --scope -p Delegate=yes python -m pytest --isolate"""


def advice(place: Surroundings, features: Mapping[str, Feature]) -> str:
    """What to add, with the reason; a sentence when there is nothing to add."""
    where = {"": "no CI service was noticed"}.get(place.runner, f"the runner is {place.runner}")
    lacks = [name for name in ("sandbox", "cgroup_memory") if not features[name]]
    if not lacks:
        return f"# {where}; namespaces and group limits work here. Nothing to add:\npython -m pytest --isolate"
    blocks = [f"# {where}; lacking here: {', '.join(lacks)}"]
    blocks += [textwrap.fill(f"{features[name]}", 118, initial_indent="# ", subsequent_indent="#   ") for name in lacks]
    blocks += _recipes(place, sandbox="sandbox" in lacks, cgroups="cgroup_memory" in lacks)
    if "sandbox" in lacks and features["landlock"] and features["seccomp_default"]:
        blocks.append(_LANDLOCK)
    return "\n\n".join(blocks)


def _recipes(place: Surroundings, *, sandbox: bool, cgroups: bool) -> list[str]:
    if place.runner == "gitlab":
        return [_GITLAB, _GITLAB_LOW]
    if place.runner == "github" and not place.container:
        return [_GITHUB_USER] * sandbox + [_GITHUB_CGROUPS] * cgroups
    if place.runner == "github":
        return [_GITHUB_CONTAINER]
    if place.confined:
        writable_by_root = place.uid != 0 and not place.cgroup_read_only
        return [_DOCKER] * sandbox + [_DOCKER_ROOT if writable_by_root else _DOCKER_CGROUPS] * cgroups
    return [_plain(place)] * sandbox + [_PLAIN_CGROUPS] * cgroups


def _plain(place: Surroundings) -> str:
    """A machine's own shell: the switches that are off, by name."""
    switches = [
        ("kernel.apparmor_restrict_unprivileged_userns=0", place.apparmor_userns == 1),
        ("kernel.unprivileged_userns_clone=1", place.userns_clone == 0),
        ("user.max_user_namespaces=10000", place.max_user_namespaces == 0),
    ]
    lines = [f"sudo sysctl -w {switch}" for switch, off in switches if off]
    return "\n".join(
        ["# Once per boot, or in /etc/sysctl.d/", *lines] if lines else ["sudo python -m pytest --isolate"]
    )

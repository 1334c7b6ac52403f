"""Debian's packages by name and suite, without touching this machine's apt.

Owns: one private apt directory per suite in the cache, the download of a package, its unpacking, and debootstrap.
Refuses: unsigned indexes (apt verifies with Debian's own keyring, and each package against the signed index),
the machine's sources, and installing anything on the host.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_isolate.errors import BackendUnavailable

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LISTS_FRESH_S = 24 * 3600
_SBIN = ":/usr/sbin:/sbin"

_APT_DIRECTORIES = (
    "etc/apt.conf.d",
    "etc/preferences.d",
    "etc/trusted.gpg.d",
    "state/lists/partial",
    "cache/archives/partial",
    "log",
)

#: Program -> Debian package that has it, and why the matrix wants it.
PROGRAMS = {
    "apt-get": ("apt", "kernels and their signatures"),
    "dpkg-deb": ("dpkg", "unpacking without installing"),
    "depmod": ("kmod", "an index of the unpacked modules"),
    "debootstrap": ("debootstrap", "root file systems with systemd or another Python"),
    "qemu-system-x86_64": ("qemu-system-x86", "the machine itself"),
    "busybox": ("busybox-static", "the guest's first minute"),
    "setpriv": ("util-linux", "qemu dies with its runner; the guest's plain user"),
    "zstd": ("zstd", "kernels of Debian 13 and later"),
}


def cache_dir() -> Path:
    """Where fetched things live, outside the checkout. Source: XDG Base Directory Specification."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "pytest-isolate-vm"


def program(name: str) -> str:
    """Return the path of a program the matrix needs, looking into the sbin directories too.

    Raises:
        BackendUnavailable: it is not there; names the package.
    """
    found = shutil.which(name, path=os.environ.get("PATH", "") + _SBIN)
    if found is None:
        package, why = PROGRAMS[name]
        raise BackendUnavailable(f"vm: {name}", f"not installed ({why})", f"apt-get install {package}")
    return found


def missing_packages() -> list[str]:
    """The Debian packages of what the matrix needs and this host lacks."""
    path = os.environ.get("PATH", "") + _SBIN
    packages = [package for name, (package, _) in PROGRAMS.items() if shutil.which(name, path=path) is None]
    return packages if KEYRING.exists() else [*packages, "debian-archive-keyring"]


def call(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a host program to its end and return its output.

    Raises:
        BackendUnavailable: it failed; carries the last lines it wrote.
    """
    done = subprocess.run([str(a) for a in argv], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = "; ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise BackendUnavailable(f"vm: {Path(argv[0]).name}", f"status {done.returncode}: {said}", "see the line above")
    return done.stdout


def mirror(ending: str = "") -> str:
    """Where this machine's own apt gets a release whose name ends so: the place it is set up, and allowed, to ask.

    Raises:
        BackendUnavailable: its apt has no such source.
    """
    for line in call(program("apt-get"), "indextargets", "--format", "$(SITE) $(RELEASE)").splitlines():
        site, _, release = line.partition(" ")
        if release.endswith(ending) if ending else "-" not in release:
            return site
    raise BackendUnavailable(f"vm: a source of Debian{ending} packages", "this machine's apt has none", "add one")


class Suite:
    """One Debian suite seen through an apt of its own; the directory is made and filled on first use."""

    def __init__(self, name: str, *, refresh: bool = False) -> None:
        self.name = name
        self._dir = cache_dir() / "apt" / name
        self._refresh = refresh

    def show(self, package: str) -> dict[str, str]:
        """The newest stanza of ``package`` in the signed index, field -> value."""
        self._update()
        stanza = call("apt-cache", *self._options(), "show", "--no-all-versions", package).split("\n\n")[0]
        return dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))

    def depends(self, package: str, pattern: str) -> list[str]:
        """The dependencies of ``package`` that ``pattern`` matches whole: how a metapackage names the real ones."""
        words = re.findall(r"[^\s,|()]+", self.show(package).get("Depends", ""))
        return [word for word in words if re.fullmatch(pattern, word)]

    def unpack(self, package: str, into: Path) -> str:
        """Download ``package``, check it against the signed index, unpack it; return its SHA-256."""
        wanted = self.show(package)["SHA256"]
        work = self._dir / "download"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        call("apt-get", *self._options(), "download", package, cwd=work)
        (deb,) = work.glob("*.deb")
        found = hashlib.sha256(deb.read_bytes()).hexdigest()
        if found != wanted:
            raise BackendUnavailable(f"vm: {deb.name}", f"SHA-256 {found}, the index says {wanted}", "fetch it again")
        call("dpkg-deb", "--extract", deb, into)
        shutil.rmtree(work)
        return found

    def _options(self) -> list[str]:
        places = {
            "Dir::Etc": "etc",
            "Dir::State": "state",
            "Dir::State::status": "state/status",
            "Dir::Cache": "cache",
            "Dir::Log": "log",
        }
        private = [f"{key}={self._dir / place}" for key, place in places.items()]
        # The cache may lie where the _apt user cannot look; without this apt warns on every download.
        options = (*private, "APT::Sandbox::User=root", "APT::Get::AllowUnauthenticated=false")
        return [word for option in options for word in ("-o", option)]

    def _update(self) -> None:
        stamp = self._dir / "updated"
        age = time.time() - stamp.stat().st_mtime if stamp.exists() else LISTS_FRESH_S
        if age < LISTS_FRESH_S and not self._refresh:
            return
        for place in _APT_DIRECTORIES:
            (self._dir / place).mkdir(parents=True, exist_ok=True)
        (self._dir / "state/status").touch()
        (self._dir / "etc/sources.list").write_text("".join(f"{line}\n" for line in sources(self.name)))
        call("apt-get", *self._options(), "--error-on=any", "update")
        stamp.touch()
        self._refresh = False


def sources(suite: str) -> list[str]:
    """The lines of sources.list: the suite and, where Debian has one, its security suite."""
    if not KEYRING.exists():
        raise BackendUnavailable("vm: Debian's keys", f"{KEYRING} is missing", "apt-get install debian-archive-keyring")
    option = f"deb [arch=amd64 signed-by={KEYRING}]"
    lines = [f"{option} {mirror()} {suite} main"]
    if suite != "sid":
        lines.append(f"{option} {mirror('-security')} {suite}-security main")
    return lines


def bootstrap(suite: str, packages: Sequence[str]) -> Path:
    """Return the directory of a minimal Debian with ``packages``, made once and kept in the cache.

    Made in a mount and PID namespace of its own, so that nothing debootstrap mounts or starts outlives it.

    Raises:
        BackendUnavailable: not root (debootstrap makes device nodes), or debootstrap failed.
    """
    key = hashlib.sha256(" ".join(sorted(packages)).encode()).hexdigest()[:12]
    root = cache_dir() / "roots" / f"{suite}-{key}"
    if root.exists():
        return root
    if os.geteuid() != 0:
        raise BackendUnavailable(f"vm: a {suite} root", "debootstrap needs root", "run once as root, or another row")
    making = root.with_name(root.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    making.parent.mkdir(parents=True, exist_ok=True)
    own = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    what = (f"--include={','.join(packages)}", suite, making, mirror())
    call(*own, program("debootstrap"), "--variant=minbase", f"--keyring={KEYRING}", *what)
    shutil.rmtree(making / "var/cache/apt/archives", ignore_errors=True)
    making.rename(root)
    return root

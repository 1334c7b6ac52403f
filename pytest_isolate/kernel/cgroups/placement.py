"""Finding where we may make cgroups, by trying, and making the run's directory there.

Owns: Branch (the run's directory in one hierarchy), the choice of a v2 place, moving ourselves to a leaf, undoing both.
Refuses: to move anything out of a cgroup that is not delegated to us, and to place sandboxes where an outer limit
would not hold them any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from pytest_isolate.errors import SetupError
from pytest_isolate.kernel.cgroups import cgroupfs, stale, v1, v2
from pytest_isolate.kernel.cgroups.layout import CONTROLLERS, Hierarchy, is_machine_root

#: Enabled for every run on v2; the others only when a limit asks, since each makes every mkdir dearer.
USUAL = frozenset({"memory", "pids", "cpu"})
_LEAF = "supervisor"
PROBE = "probe"
#: What a single-threaded child writes ``0`` to. v1's ``tasks`` moves the caller without the lock over all of the
#: machine's thread groups that cgroup.procs takes: 30 us against 4-12 ms, an RCU grace period, whenever the last
#: such write was more than some milliseconds ago. v2 has no such file; CLONE_INTO_CGROUP spares the lock there.
#: Source: kernel/cgroup/cgroup.c cgroup_procs_write_start, since Linux 5.4.
JOIN_FILE = {1: "tasks", 2: "cgroup.procs"}
#: What an outer cgroup may hold us by; a sandbox beside that cgroup would escape it.
_OUTER_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "cpu.max")


@dataclass(slots=True)
class Branch:
    """The run's directory in one hierarchy; owner of ``fd``, and of undoing (``undo``) what made it possible.

    Attributes:
        parent: the directory it is in. controllers: what its children have, or can be given (``enable``).
        enabled: those already on in its children. inherited: v1 cpuset values every child starts from.
    """

    version: int
    parent: str
    name: str
    controllers: frozenset[str]
    fd: int = -1
    enabled: frozenset[str] = frozenset()
    inherited: dict[str, str] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)
    undo: ExitStack = field(default_factory=ExitStack)
    enable_above: Callable[[frozenset[str]], None] | None = None

    @property
    def path(self) -> str:
        return f"{self.parent}/{self.name}"

    def make(self, name: str) -> None:
        """Make a cgroup for one sandbox. A v1 cpuset takes no process before it has CPUs and memory nodes."""
        cgroupfs.make(self.fd, name)
        for file, value in self.inherited.items():
            cgroupfs.write(self.fd, f"{name}/{file}", value)

    def enable(self, wanted: frozenset[str]) -> None:
        """Give the children the controllers in ``wanted`` (v2: cgroup.subtree_control); fine when they have them."""
        missing = (wanted & self.controllers) - self.enabled - {"freezer"}
        if self.version == 1 or not missing:
            return
        if self.enable_above is not None:
            self.enable_above(missing)
        cgroupfs.write(self.fd, "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)))
        self.enabled |= missing


def place_v1(hierarchy: Hierarchy, run: str, volunteer: Volunteer) -> Branch:
    """Make the run's directory in our own cgroup of a v1 hierarchy.

    Raises:
        SetupError: why not; nothing is left then.
    """
    parent = _own_directory(hierarchy)
    branch = Branch(version=1, parent=parent, name=run, controllers=hierarchy.controllers, enabled=hierarchy.controllers)
    with undone_on_error(branch.undo):
        _make_run(branch)
        if "cpuset" in branch.controllers:
            branch.inherited = _cpuset_of(parent)
            for file, value in branch.inherited.items():
                cgroupfs.write(branch.fd, file, value)
        if "memory" in branch.controllers and cgroupfs.read(branch.fd, "memory.use_hierarchy") == "0\n":
            cgroupfs.write(branch.fd, "memory.use_hierarchy", "1")  # before Linux 5.11 a choice of each subtree
        _try_out(branch, v1.NEUTRAL, volunteer)
    return branch


def place_v2(hierarchy: Hierarchy, run: str, volunteer: Volunteer, elsewhere: frozenset[str]) -> Branch:
    """Make the run's directory in v2, where most of the usual controllers can be had. ``elsewhere``: they are in v1.

    Raises:
        SetupError: why not; nothing is left then.
    """
    own = _own_directory(hierarchy)
    wanted = USUAL - elsewhere
    first: SetupError | None = None
    for parent in sorted(_candidates(own, hierarchy.mount), key=lambda c: -len(_offers(c, own) & wanted)):
        try:
            return _grow(parent, own, run, volunteer, elsewhere)
        except SetupError as error:
            first = first or error
    assert first is not None  # _candidates yields at least our own
    raise first


def _grow(parent: str, own: str, run: str, volunteer: Volunteer, elsewhere: frozenset[str]) -> Branch:
    branch = Branch(version=2, parent=parent, name=run, controllers=frozenset())
    with undone_on_error(branch.undo):
        if parent == own and _may_move(own):
            _step_aside(own, branch.undo)
        if parent == own and (is_machine_root(own) or _may_move(own, already=True)):
            branch.enable_above = _enabler(own, branch.undo)
        branch.controllers = (_offers(parent, own) & frozenset(CONTROLLERS)) - elsewhere | {"freezer"}
        if branch.enable_above is not None:
            branch.enable_above(USUAL & branch.controllers)
        _make_run(branch)
        if cgroupfs.read(branch.fd, "cgroup.freeze") is None:  # Linux 5.2
            branch.controllers -= {"freezer"}
        branch.enable(USUAL & branch.controllers)
        _try_out(branch, v2.NEUTRAL, volunteer)
    return branch


def _own_directory(hierarchy: Hierarchy) -> str:
    if hierarchy.directory is None:
        error = FileNotFoundError(errno.ENOENT, "hidden")
        raise cgroupfs.fault("lookup", error, f"our own cgroup {hierarchy.path} is not shown by {hierarchy.mount}")
    if hierarchy.read_only:
        raise cgroupfs.fault("mkdir", OSError(errno.EROFS, "read-only"), hierarchy.directory)
    return hierarchy.directory


def _make_run(branch: Branch) -> None:
    """Sweep what dead runs left, then make and open our own directory."""
    try:
        parent_fd = cgroupfs.open_directory(branch.parent)
    except OSError as error:
        raise cgroupfs.fault("open", error, branch.parent) from error
    branch.undo.callback(os.close, parent_fd)
    branch.left_behind = stale.sweep(parent_fd, branch.version, branch.controllers)
    cgroupfs.make(parent_fd, branch.name)
    branch.undo.callback(cgroupfs.remove, parent_fd, branch.name)
    branch.fd = cgroupfs.open_directory(branch.name, parent_fd)
    branch.undo.callback(os.close, branch.fd)


def _try_out(branch: Branch, neutral: dict[str, tuple[str, str]], volunteer: Volunteer) -> None:
    """Do what every sandbox will need once, in a throw-away cgroup: make, limit, join."""
    branch.make(PROBE)
    branch.undo.callback(cgroupfs.remove, branch.fd, PROBE)
    for controller in sorted(branch.enabled & neutral.keys()):
        file, value = neutral[controller]
        cgroupfs.write(branch.fd, f"{PROBE}/{file}", value)
    volunteer.join(branch, JOIN_FILE[branch.version])


class Volunteer:
    """A child that joins throw-away cgroups when told to; started when first asked. Context manager."""

    def __init__(self) -> None:
        self._pid = 0
        self._socket: socket.socket | None = None

    def join(self, branch: Branch, file: str) -> None:
        """Have the child write itself to ``file`` of the throw-away cgroup.

        Raises:
            SetupError: what the kernel answered it.
        """
        if self._socket is None:
            self._pid, self._socket = _start_joiner()
        self._socket.sendall(f"{branch.path}/{PROBE}/{file}".encode("utf-8", "surrogateescape"))
        code = (self._socket.recv(1) or b"\x05")[0]  # EIO: it died
        if code:
            raise cgroupfs.fault(file, OSError(code, "join"), branch.path)

    def __enter__(self) -> Volunteer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()  # the end of its input
            os.waitpid(self._pid, 0)


def _start_joiner() -> tuple[int, socket.socket]:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads
        pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _join_as_told(its)
        finally:
            os._exit(0)
    its.close()
    return pid, ours


def _join_as_told(channel: socket.socket) -> None:
    """In the child: open, write, answer the errno, until the other end closes. Nothing that could take a lock."""
    while path := channel.recv(4096):
        code = 0
        try:
            fd = os.open(path, os.O_WRONLY)
            os.write(fd, b"0")
            os.close(fd)
        except OSError as error:
            code = error.errno or errno.EIO
        channel.send(bytes([min(code, 255)]))


def _cpuset_of(parent: str) -> dict[str, str]:
    found = {}
    for file, effective in (
        ("cpuset.mems", "cpuset.effective_mems"),
        ("cpuset.cpus", "cpuset.effective_cpus"),
    ):
        with contextlib.suppress(OSError):
            fd = cgroupfs.open_directory(parent)
            try:
                found[file] = (cgroupfs.read(fd, effective) or cgroupfs.read(fd, file) or "").strip()
            finally:
                os.close(fd)
    return found


# v2: which cgroup can be the parent.


def _candidates(own: str, mount: str) -> Iterator[str]:
    """Our own cgroup, then those above as far as no limit of a cgroup in between would be escaped."""
    here = own
    yield here
    while here != mount and not any(_held(here, file) for file in _OUTER_LIMITS):
        here = os.path.dirname(here)
        yield here


def _held(directory: str, file: str) -> bool:
    words = _words(directory, file)
    return bool(words) and words[0] != "max"


def _offers(parent: str, own: str) -> frozenset[str]:
    """The controllers a child of ``parent`` has or can be given by us."""
    if parent == own and (is_machine_root(own) or _may_move(own) or _may_move(own, already=True)):
        return frozenset(_words(parent, "cgroup.controllers"))
    return frozenset(_words(parent, "cgroup.subtree_control"))


def _may_move(own: str, *, already: bool = False) -> bool:
    """True when ``own`` is delegated to us with controllers, and holds this process alone (``already``: nobody)."""
    if is_machine_root(own) or not _words(own, "cgroup.controllers") or not _delegated(own):
        return False
    return _words(own, "cgroup.procs") == ([] if already else [str(os.getpid())])


def _delegated(own: str) -> bool:
    """Marked so by systemd, given to this user by ownership, or the root of a cgroup namespace (a container's)."""
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(own, name) == b"1":
                return True
    if os.geteuid() != 0:
        return os.access(f"{own}/cgroup.subtree_control", os.W_OK)
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return "0::/\n" in file.readlines()


def _words(directory: str, file: str) -> list[str]:
    try:
        with open(f"{directory}/{file}", encoding="ascii", errors="replace") as opened:
            return opened.read().split()
    except OSError:
        return []


def _step_aside(own: str, undo: ExitStack) -> None:
    """Move this process to a leaf: a v2 cgroup with controllers for its children may hold no process itself."""
    fd = cgroupfs.open_directory(own)
    undo.callback(os.close, fd)
    try:
        os.mkdir(_LEAF, 0o755, dir_fd=fd)
    except FileExistsError:
        pass
    except OSError as error:
        raise cgroupfs.fault("mkdir", error, f"{own}/{_LEAF}") from error
    undo.callback(cgroupfs.remove, fd, _LEAF)
    cgroupfs.write(fd, f"{_LEAF}/cgroup.procs", "0")
    undo.callback(_move_back, fd)


def _move_back(fd: int) -> None:
    """Return to where we came from. Refused (EBUSY) while another run needs the controllers: then we stay."""
    with contextlib.suppress(SetupError):
        cgroupfs.write(fd, "cgroup.procs", "0")


def _enabler(own: str, undo: ExitStack) -> Callable[[frozenset[str]], None]:
    """What turns controllers on for the children of ``own``, and off again at the end if nobody else is there."""
    fd = cgroupfs.open_directory(own)
    undo.callback(os.close, fd)
    turned_on: list[str] = []
    undo.callback(_disable, fd, turned_on)

    def enable(wanted: frozenset[str]) -> None:
        missing = wanted - frozenset((cgroupfs.read(fd, "cgroup.subtree_control") or "").split()) - {"freezer"}
        for name in sorted(missing):
            cgroupfs.write(fd, "cgroup.subtree_control", f"+{name}")
            turned_on.append(name)

    return enable


def _disable(fd: int, names: list[str]) -> None:
    """A leaf of somebody else's would silently lose its limits: only when nobody but our own leaf is there."""
    for name in names:
        if {os.path.basename(child) for child in cgroupfs.children(fd, ".")} <= {_LEAF}:
            with contextlib.suppress(SetupError):
                cgroupfs.write(fd, "cgroup.subtree_control", f"-{name}")


@contextlib.contextmanager
def undone_on_error(undo: ExitStack) -> Iterator[None]:
    """Unwind ``undo`` when the block fails; leave it to its owner when it succeeds."""
    try:
        yield
    except BaseException:
        undo.close()
        raise

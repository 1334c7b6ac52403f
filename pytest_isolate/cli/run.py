"""`pytest-isolate run`: a program in a sandbox, from the shell. Exit statuses as timeout(1) and env(1) have them.

Owns: the options of the command and its exit status. Refuses: to capture: the program has the terminal.
Exit status: the program's own; 128 + N killed by signal N; 124 a time-out, unless that took SIGKILL; 125 this command failed: a
request without meaning, or a sandbox that could not be made; 126 the program cannot be executed; 127 there is no such program.
Signals to this command are the program's (forward.py); what is said, and the JSON, is in told.py; views are in views.py.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Sequence
from typing import Any

from pytest_isolate import units
from pytest_isolate.cli import views
from pytest_isolate.cli.forward import Forwarding
from pytest_isolate.cli.told import Told, say
from pytest_isolate.errors import IsolateError, PolicyError, SetupError
from pytest_isolate.groups import Groups
from pytest_isolate.kernel import standard
from pytest_isolate.outcome import Cause, Outcome
from pytest_isolate.policy import IoLimit, Policy, unknown
from pytest_isolate.profile import PROFILES, vary
from pytest_isolate.sandbox import Sandbox

EXIT_TIMEOUT = 124
EXIT_SANDBOX = 125
#: What main() exits with where the command line has no meaning.
EXIT_USAGE = EXIT_SANDBOX
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
_SHELL = "/bin/sh"  # _PATH_BSHELL, by which execvp(3) runs a script without #!
#: Option -> policy word of profile.WORDS, and the option's meaning.
_WORDS = {
    "memory": "memory of all its processes together, as 512M",
    "memory-high": "from here on it is slowed down and its memory reclaimed, as 400M",
    "swap": "swap of all its processes together, as 64M, or 0",
    "pids": "how many processes and threads it may have",
    "cpu": "share of CPUs, as 0.5 or 2",
    "cpu-weight": "share of the CPU when others want it, too: 1 to 10000, 100 is usual",
    "cpuset": "the CPUs it may run on, as 0-1",
    "cpu-time": "CPU seconds a process of it may use",
    "net": "network: host, none, loopback, private, ...",
    "net-default": "deny or allow what no rule speaks of",
    "namespaces": "namespaces, as pid,uts or +net",
    "timeout": "end it, and all it started, after this time: seconds, or 5m, 2h, 1d; 0: never",
    "grace": "time between SIGTERM and SIGKILL at a time-out (1); when given, also after a SIGTERM to this command",
    "hostname": "its host name",
    "capabilities": "drop, keep, or the names that stay",
    "no-new-privs": "yes: setuid programs give nothing",
    "securebits": "yes: user 0 gets no capability back",
    "seccomp": "profile for system calls: none or default",
    "seccomp-refuse": "system calls to refuse besides, as ptrace,chroot=ENOSYS",
    "landlock": "yes: writes only below /tmp, /var/tmp, /dev and /proc",
    "landlock-read": "paths below which to read and execute, as /usr,/lib",
    "landlock-write": "paths below which to do everything",
    "landlock-connect": "TCP ports to connect to, as 80,443, or none",
    "landlock-bind": "TCP ports to bind, or none",
    "landlock-scoped": "yes: no signal and no abstract socket reaches out",
    "close-fds": "no: descriptors above 2 are inherited",
    "umask": "umask, as 077",
    "environment": "keep, or scrub: only HOME, PATH, LANG and the like stay",
}
_REPEATABLE = {
    "rlimit": ("NAME=SOFT[:HARD]", "a limit of each process, by the names of getrlimit(2), as NOFILE=64"),
    "io": ("PATH:rbps=N,...", "bounds on the device of PATH: rbps, wbps, riops, wiops, as /var:wbps=1M"),
    "net-allow": ("RULE", "what may be opened to, as 127.0.0.1:80/tcp"),
    "net-deny": ("RULE", "what may not be opened to"),
}
_IO = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
_CGROUPS = ("auto", "v1", "v2", "systemd", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `run`."""
    parser.usage = "pytest-isolate run [options] -- cmd [arguments]"
    parser.add_argument("--profile", default="standard", choices=sorted(PROFILES), help="what to start from")
    for name, text in _WORDS.items():
        parser.add_argument(f"--{name}", help=text)
    for flag, (metavar, text) in _REPEATABLE.items():
        parser.add_argument(
            f"--{flag}", action="append", default=[], metavar=metavar, help=f"{text}; may be given again"
        )
    views.add_arguments(parser)
    parser.add_argument("--cgroup", choices=_CGROUPS, help="where group limits are held; none: memory by RLIMIT_DATA")
    parser.add_argument("--cwd", metavar="DIR", help="the directory to run in")
    parser.add_argument(
        "--backend", default="native", metavar="NAME", help="what starts it: native, or one of a plugin"
    )
    told = parser.add_mutually_exclusive_group()
    told.add_argument(
        "--json", action="store_true", help="write the outcome to standard error, as JSON on a line of its own"
    )
    told.add_argument("--json-file", metavar="FILE", help="write the outcome to FILE, as JSON")
    told.add_argument("--json-fd", type=descriptor, metavar="N", help="write the outcome to descriptor N, as JSON")
    parser.add_argument(
        "--keep-fd",
        action="append",
        default=[],
        type=descriptor,
        metavar="N",
        help="a descriptor above 2 to be inherited, and no other; may be given again",
    )
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- cmd", help="the program and its arguments")


def descriptor(text: str) -> int:
    """The type of an option's value. Raises ValueError: no descriptor has that number."""
    number = int(text)
    if not 0 <= number < 1 << 31:
        raise ValueError
    return number


def run(arguments: argparse.Namespace) -> int:
    """Run the program; the exit status."""
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    try:
        standard.hold()  # before a file of ours becomes the program's input or output
        told = Told(arguments)
    except IsolateError as error:
        say(str(error))
        return EXIT_SANDBOX
    try:
        outcome = _outcome(argv, arguments)
    except (IsolateError, OSError) as error:
        refusal = _status_of_refusal(error)
        told.failed(argv, error, refusal)
        return refusal
    told.ended(outcome, status(outcome))
    return status(outcome)


def _outcome(argv: Sequence[str], arguments: argparse.Namespace) -> Outcome:
    if not argv:
        raise PolicyError("no program is named", "there is nothing to run", "write it after --, as in: run -- true")
    _keep_only(arguments.keep_fd)
    policy = views.viewed(policy_of(arguments), arguments, argv[0])
    groups = None if arguments.cgroup is None else Groups(arguments.cgroup)
    kill_after_s = policy.grace_s if arguments.grace is not None else None
    with (
        Forwarding(kill_after_s) as signals,
        Sandbox(policy, backends=(arguments.backend,), name="run", cgroups=groups) as sandbox,
    ):
        try:
            running = sandbox.spawn(argv, stdin=0, cwd=arguments.cwd, capture=False)
        except SetupError as error:
            script = _script(argv[0]) if (error.step, error.errno) == ("exec", errno.ENOEXEC) else None
            if script is None:
                raise
            running = sandbox.spawn([_SHELL, script, *argv[1:]], stdin=0, cwd=arguments.cwd, capture=False)
        signals.to(running)
        return running.wait()


def _script(program: str) -> str | None:
    """What execvp(3) gives to the shell where the kernel knows no such format (ENOEXEC)."""
    return program if "/" in program else shutil.which(program)


def policy_of(arguments: argparse.Namespace) -> Policy:
    """The profile, varied by the options that are words of a policy. None lets descriptors be inherited that nobody named."""
    words: dict[str, Any] = {name.replace("-", "_"): getattr(arguments, name.replace("-", "_")) for name in _WORDS}
    words["timeout"] = _timeout(words["timeout"])
    if words["close_fds"] is None:
        words["close_fds"] = not arguments.keep_fd
    elif arguments.keep_fd:
        raise PolicyError("--keep-fd", "--close-fds says of all what this says of some", "leave one out")
    words["rlimits"] = dict(map(_rlimit, arguments.rlimit)) or None
    words["io"] = [_io(text) for text in arguments.io] or None
    for verb in ("net_allow", "net_deny"):
        words[verb] = ",".join(getattr(arguments, verb)) or None
    if arguments.cgroup == "none":
        words["memory_fallback"] = "rlimit"
    return vary(PROFILES[arguments.profile], **words)


def _timeout(text: str | None) -> float | None:
    """0 and inf are no time-out, and 1e3 is a number, as timeout(1) has it."""
    if text is None:
        return None
    number = text.rstrip("smhd")
    with contextlib.suppress(ValueError):
        if float(number) in (0, float("inf")):
            return None
        if "e" in number.lower():
            text = f"{float(number):f}{text[len(number) :]}"
    return units.duration_s(text, what="timeout")


def _keep_only(kept: Sequence[int]) -> None:
    """Where some are to be inherited, all others are closed by exec; without any, by the sandbox (close_fds)."""
    for fd in kept:
        if not standard.is_open(fd):
            raise PolicyError(f"--keep-fd {fd}", "it is not open", "open it for this command, as in: 5<FILE")
        if not os.get_inheritable(fd):
            raise PolicyError(f"--keep-fd {fd}", "this command writes the outcome there", "give another one")
    for fd in map(int, os.listdir("/proc/self/fd")) if kept else ():
        if fd > 2 and fd not in kept and standard.is_open(fd):  # not the one that lists them
            os.set_inheritable(fd, False)


def _rlimit(text: str) -> tuple[str, Any]:
    """NAME=SOFT[:HARD]"""
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise PolicyError(f"--rlimit {text}", "it has no value", "write NAME=SOFT or NAME=SOFT:HARD, as NOFILE=64")
    soft, colon, hard = value.partition(":")
    return name, (soft, hard) if colon else soft


def _io(text: str) -> IoLimit:
    """PATH:rbps=1M,wiops=100; the names are those of io.max. Source: cgroup-v2.rst, IO Interface Files."""
    path, colon, pairs = text.rpartition(":")
    if not colon or not path:
        raise PolicyError(f"--io {text}", "it has no bound", "write PATH:rbps=1M,wbps=1M,riops=100,wiops=100")
    bounds: dict[str, int] = {}
    for pair in pairs.split(","):
        name, _, value = pair.partition("=")
        if name not in _IO:
            raise unknown(f"--io {text}: bound", name, _IO)
        measure = units.size_bytes if name.endswith("bps") else units.count
        bounds[_IO[name]] = measure(value, what=f"--io {name}")
    return IoLimit(path=os.path.abspath(path), **bounds)


def status(outcome: Outcome) -> int:
    """What the shell is told: of a time-out, as timeout(1) does, that it took SIGKILL."""
    if Cause.TIMEOUT in outcome.causes and outcome.status.signal != signal.SIGKILL:
        return EXIT_TIMEOUT
    if outcome.status.code is not None:
        return outcome.status.code
    return 128 + (outcome.status.signal or 0)


def _status_of_refusal(error: Exception) -> int:
    if not isinstance(error, SetupError) or error.step != "exec":
        return EXIT_SANDBOX
    return EXIT_NOT_FOUND if error.errno == errno.ENOENT else EXIT_NOT_EXECUTABLE

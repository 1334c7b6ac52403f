"""`pytest-isolate run`: a program in a sandbox, from the shell. Exit statuses as timeout(1) and env(1) have them.

Owns: the options of the command and the JSON of its outcome. Refuses: to capture: the program has the terminal.
Exit status: the program's own; 128 + N killed by signal N; 124 a time-out; 125 the sandbox could not be made;
126 the program cannot be executed; 127 there is no such program. A signal that would end this command goes to the program.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
from typing import Any

from pytest_isolate.cli import say_no_more
from pytest_isolate.errors import IsolateError, PolicyError, SetupError
from pytest_isolate.outcome import Cause, Outcome
from pytest_isolate.policy import Filesystem, Namespace, Overlay, Policy
from pytest_isolate.profile import PROFILES, vary
from pytest_isolate.sandbox import Sandbox

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
EXIT_TIMEOUT = 124
EXIT_SANDBOX = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
#: Option -> policy word of profile.WORDS, and the option's meaning.
_WORDS = {
    "memory": "memory of all its processes together, as 512M",
    "pids": "how many processes and threads it may have",
    "cpu": "share of CPUs, as 0.5 or 2",
    "cpu-time": "CPU seconds a process of it may use",
    "net": "network: host, none, loopback, private, ...",
    "namespaces": "namespaces, as pid,uts or +net",
    "timeout": "end it, and all it started, after this many seconds",
    "grace": "time between SIGTERM and SIGKILL at a time-out (1)",
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
    "close-fds": "yes: inherited descriptors above 2 are closed",
    "umask": "umask, as 077",
    "environment": "keep, or scrub: only HOME, PATH, LANG and the like stay",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `run`."""
    parser.add_argument("--profile", default="standard", choices=sorted(PROFILES), help="what to start from")
    for name, text in _WORDS.items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument(
        "--fs",
        action="append",
        default=[],
        metavar="VIEW",
        help="host, readonly, minimal (the program with its libraries, and nothing else), or overlay:DIR (changes are listed "
        "and thrown away); may be given again",
    )
    parser.add_argument("--cwd", help="the directory to run in")
    parser.add_argument("--json", action="store_true", help="write the outcome to standard error, as one JSON object")
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- cmd", help="the program and its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Run the program; the exit status."""
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise PolicyError("run", "no program is named", "write it after --, as in: pytest-isolate run -- true")
    try:
        policy = _with_program(policy_of(arguments), argv[0])
        with _Signals() as signals, Sandbox(policy, name="run") as sandbox:
            running = sandbox.spawn(argv, stdin=0, cwd=arguments.cwd, capture=False)
            try:
                signals.raise_from_now_on()
                outcome = running.wait()
            except _Signalled:
                outcome = running.terminate(signals.came)
    except SetupError as error:
        print(f"pytest-isolate run: {error}", file=sys.stderr)
        return _status_of_refusal(error)
    except PolicyError:
        raise
    except IsolateError as error:
        print(f"pytest-isolate run: {error}", file=sys.stderr)
        return EXIT_SANDBOX
    try:
        report(outcome, as_json=arguments.json)
    except BrokenPipeError:  # nobody reads what we say; the exit status is the program's all the same
        say_no_more(sys.stderr)
    return status(outcome)


class _Signalled(BaseException):
    """This command got a signal while it waited."""


class _Signals(contextlib.AbstractContextManager["_Signals"]):
    """What would end this command is for the program, which may end as it likes, within the grace. The first one counts.

    The program is in a session of its own: it does not get the terminal's Ctrl-C. What was ignored at the start stays so.
    """

    def __init__(self) -> None:
        self.came = 0
        self._raises = False
        heard = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._hear) for number in heard}

    def _hear(self, number: int, _frame: object) -> None:
        if not self.came:
            self.came = number
            if self._raises:
                raise _Signalled

    def raise_from_now_on(self) -> None:
        """There is a program now, which can be told."""
        self._raises = True
        if self.came:
            raise _Signalled

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def policy_of(arguments: argparse.Namespace) -> Policy:
    """The profile, varied by the options."""
    words = {name.replace("-", "_"): getattr(arguments, name.replace("-", "_")) for name in _WORDS}
    policy = vary(PROFILES[arguments.profile], **words)
    for view in arguments.fs:
        policy = _viewed(policy, view)
    return policy


def _with_program(policy: Policy, program: str) -> Policy:
    """A root built from nothing has at least what is to be run in it."""
    filesystem, found = policy.filesystem, shutil.which(program)
    if filesystem.root != "minimal" or filesystem.programs or found is None:
        return policy
    return dataclasses.replace(policy, filesystem=dataclasses.replace(filesystem, programs=(found,)))


def _viewed(policy: Policy, view: str) -> Policy:
    kind, colon, place = view.partition(":")
    if kind != "overlay" or not colon:
        return vary(policy, fs=view)
    target = os.path.realpath(place)
    if not os.path.isdir(target):
        raise PolicyError(f"--fs {view}", "there is no such directory", "name one that exists")
    filesystem: Filesystem = policy.filesystem
    changed = dataclasses.replace(filesystem, overlays=(*filesystem.overlays, Overlay(target=target)))
    return dataclasses.replace(policy, filesystem=changed, namespaces=policy.namespaces | {Namespace.MOUNT})


def status(outcome: Outcome) -> int:
    """What the shell is told."""
    if Cause.TIMEOUT in outcome.causes:
        return EXIT_TIMEOUT
    if outcome.status.code is not None:
        return outcome.status.code
    return 128 + (outcome.status.signal or 0)


def _status_of_refusal(error: SetupError) -> int:
    if error.step != "exec":
        return EXIT_SANDBOX
    return EXIT_NOT_FOUND if error.errno == errno.ENOENT else EXIT_NOT_EXECUTABLE


def report(outcome: Outcome, *, as_json: bool) -> None:
    """The causes and the changed files on standard error, a line each; or everything as JSON."""
    if as_json:
        print(json.dumps(_plain(outcome)), file=sys.stderr)
        return
    changed = outcome.files_changed
    lines = [*outcome.detail]
    for kind in ("added", "modified", "deleted"):
        lines += [f"{kind}: {path}" for path in getattr(changed, kind)]
    for line in lines:
        print(f"pytest-isolate run: {line}", file=sys.stderr)


def _plain(outcome: Outcome) -> dict[str, Any]:
    found = dataclasses.asdict(outcome)
    for name in ("stdout", "stderr"):
        del found[name]
    return {**found, "causes": [cause.value for cause in outcome.causes], "returncode": outcome.returncode}

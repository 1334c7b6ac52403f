"""What `pytest-isolate run` says: lines on standard error, and the outcome as JSON where the program does not write.

Owns: the JSON, the quoting of names, and the words in which errors speak of this command's options. Refuses: to fail: where nothing
can be written (closed, full, no reader), the exit status is the program's all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_isolate.errors import PolicyError
from pytest_isolate.outcome import Cause, ExitStatus, Outcome

if TYPE_CHECKING:
    import argparse

STDERR = 2
#: The library's errors name the options of pytest; what this command has instead.
_IN_RUNS_WORDS = (
    (re.compile(r", ask for less \(--isolate-profile=minimal\), or choose --isolate-missing=\S+"), ", or ask for less"),
    (re.compile(r"[,;] or (take with|choose) --isolate-missing=.*"), ""),
    (re.compile(r"--isolate-(cgroup|profile)\b"), r"--\1"),
)


def _in_runs_words(text: str) -> str:
    for pattern, words in _IN_RUNS_WORDS:
        text = pattern.sub(words, text)
    return text


def say(text: str) -> None:
    """A line on standard error, whatever is in ``text``."""
    line = "".join(c if c.isprintable() else _escaped(c) for c in text)
    _write(STDERR, f"pytest-isolate run: {line}\n")


def quoted(path: str) -> str:
    """As ls(1) and the shell have it: plain where that is unambiguous, else 'a b' or $'a\\nb'."""
    if path.isprintable():
        return shlex.quote(path)
    return "$'" + "".join(f"\\{c}" if c in "\\'" else c if c.isprintable() else _escaped(c) for c in path) + "'"


def _escaped(character: str) -> str:
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return known.get(character) or "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


class Told:
    """Where the outcome goes: lines on standard error, or JSON there, in a file or on a descriptor."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Raises PolicyError: nothing can be written there."""
        self._json_fd = STDERR if arguments.json else -1
        self._lines = not arguments.json
        if arguments.json_fd is not None:
            self._json_fd = _given(arguments.json_fd)
        elif arguments.json_file is not None:
            self._json_fd = _made(arguments.json_file)

    def ended(self, outcome: Outcome, status: int) -> None:
        """The causes and the changed files, a line each, and the outcome as JSON where it was asked for."""
        outcome = dataclasses.replace(outcome, detail=tuple(map(_in_runs_words, outcome.detail)))
        if self._lines:
            for line in outcome.detail:
                say(line)
            for kind in ("added", "modified", "deleted"):
                for path in getattr(outcome.files_changed, kind):
                    say(f"{kind}: {quoted(path)}")
            if outcome.files_changed.incomplete:
                say("changes: there are more than are listed")
        self._json(outcome, status)

    def failed(self, argv: Sequence[str], error: Exception, status: int) -> None:
        """Nothing was run: why, and an outcome with the cause SETUP."""
        why = _in_runs_words(str(error))
        say(why)
        outcome = Outcome(
            args=tuple(argv), status=ExitStatus(code=status), causes=(Cause.SETUP,), detail=(f"SETUP: {why}",)
        )
        self._json(outcome, status)

    def _json(self, outcome: Outcome, status: int) -> None:
        if self._json_fd == STDERR:  # the program may have left a line unfinished there
            _write(STDERR, "\n" + _as_json(outcome, status))
        elif self._json_fd >= 0:
            _write(self._json_fd, _as_json(outcome, status))


def _as_json(outcome: Outcome, status: int) -> str:
    found: dict[str, Any] = dataclasses.asdict(outcome)
    for name in ("stdout", "stderr"):
        del found[name]
    causes = [cause.value for cause in outcome.causes]
    return json.dumps({**found, "causes": causes, "returncode": outcome.returncode, "exit_status": status}) + "\n"


def _given(fd: int) -> int:
    if fd <= STDERR:
        raise PolicyError(f"--json-fd {fd}", "that is the program's", "name one above 2; --json is for standard error")
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError as error:
        raise PolicyError(f"--json-fd {fd}", os.strerror(error.errno or 0).lower(), f"open it: {fd}>FILE") from None
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise PolicyError(f"--json-fd {fd}", "it is not open for writing", f"open it so: {fd}>FILE")
    os.set_inheritable(fd, False)  # it is not the program's
    return fd


def _made(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else str(error)
        raise PolicyError(f"--json-file {path!r}", why, "name a file that can be written") from None


def _write(fd: int, text: str) -> None:
    left = memoryview(os.fsencode(text))
    with contextlib.suppress(OSError):
        while left:
            left = left[os.write(fd, left) :]

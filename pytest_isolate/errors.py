"""What can go wrong, by who must act: the user, the host, or us.

Owns: the exception classes and the one shape of their text, ``what failed: why. remedy``.
Refuses: to print, log or exit; a fault of the sandbox is never reported as a fault of the test.
"""

from __future__ import annotations

import errno as _errno
import os


class IsolateError(Exception):
    """Base of every error of this package: ``what: why. remedy``."""

    def __init__(self, what: str, why: str, remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}"
        return f"{text}. {self.remedy[:1].upper()}{self.remedy[1:]}." if self.remedy else text


class PolicyError(IsolateError, ValueError):
    """The user asked for something that has no meaning: change the request."""


class BackendUnavailable(IsolateError, RuntimeError):
    """This host cannot enforce what was asked: change the host, or ask for less."""


class SetupError(IsolateError, OSError):
    """A sandbox could not be made, at a known step.

    Attributes:
        step: name of the step of the child that failed, such as ``rlimits`` or ``mount``.
        errno: the kernel's answer; ``index`` says which entry of the step's list it answered (-1: no list).
    """

    def __init__(self, step: str, errno: int, index: int = -1, detail: str = "", remedy: str = "") -> None:
        place = f"{step}[{index}]" if index >= 0 else step
        name = _errno.errorcode.get(errno, str(errno))
        why = f"{name} ({os.strerror(errno)})"
        IsolateError.__init__(self, f"sandbox setup failed at {place}{f' {detail}' if detail else ''}", why, remedy)
        self.step = step
        self.errno = errno
        self.index = index


class CleanupError(IsolateError, RuntimeError):
    """Something of ours could not be taken away; the text names it."""

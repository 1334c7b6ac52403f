"""What can go wrong, by who must act: the user, the host, a plugin's author, or us.

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
        end = "" if self.remedy.endswith("?") else "."
        return f"{text}. {self.remedy[:1].upper()}{self.remedy[1:]}{end}" if self.remedy else text


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

    @property
    def is_of_tool(self) -> bool:
        """A tool said so, in words, and gave no errno."""
        return self.errno == 0

    @classmethod
    def of_tool(cls, tool: str, said: str, remedy: str = "") -> SetupError:
        """A tool that makes sandboxes could not make one, and gave no errno but words."""
        error = cls.__new__(cls)
        IsolateError.__init__(error, f"sandbox setup failed in {tool}", said, remedy)
        error.step, error.errno, error.index = tool, 0, -1
        return error


class PluginError(IsolateError, RuntimeError):
    """A plugin's hook raised, or gave what has no meaning: its author must act. Names plugin, hook, file and line."""

    def __init__(self, plugin: str, hook: str, why: str, place: str = "") -> None:
        IsolateError.__init__(self, f"plugin {plugin}, {hook}{f' ({place})' if place else ''}", why)
        self.plugin = plugin
        self.hook = hook
        self.place = place


class CleanupError(IsolateError, RuntimeError):
    """Something of ours could not be taken away; the text names it."""

"""Runs tests, and programs that tests start, in Linux sandboxes of their own.

The public names, imported when first used: the plugin of this package is loaded in every pytest run.
"""

# ruff: noqa: F401 - imported for those who check types; at run time by __getattr__
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_isolate.calls import CallFailed
    from pytest_isolate.errors import (
        BackendUnavailable,
        CleanupError,
        IsolateError,
        PluginError,
        PolicyError,
        SetupError,
    )
    from pytest_isolate.hardening import Landlock, SeccompProfile
    from pytest_isolate.outcome import Cause, ExitStatus, Leftover, Outcome, Usage
    from pytest_isolate.policy import (
        Bind,
        Filesystem,
        Hardening,
        IoLimit,
        Limits,
        Namespace,
        Network,
        Overlay,
        Policy,
        Tmpfs,
    )
    from pytest_isolate.profile import MINIMAL, PROFILES, STANDARD, STRICT, vary
    from pytest_isolate.running import ProgramFailed, Running
    from pytest_isolate.sandbox import Sandbox

_WHERE = {
    "calls": ("CallFailed",),
    "errors": ("BackendUnavailable", "CleanupError", "IsolateError", "PluginError", "PolicyError", "SetupError"),
    "hardening": ("Landlock", "SeccompProfile"),
    "outcome": ("Cause", "ExitStatus", "Leftover", "Outcome", "Usage"),
    "policy": (
        "Bind",
        "Filesystem",
        "Hardening",
        "IoLimit",
        "Limits",
        "Namespace",
        "Network",
        "Overlay",
        "Policy",
        "Tmpfs",
    ),
    "profile": ("MINIMAL", "PROFILES", "STANDARD", "STRICT", "vary"),
    "running": ("ProgramFailed", "Running"),
    "sandbox": ("Sandbox",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [*_MODULE_OF]  # noqa: PLE0604 - names of the table above


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)

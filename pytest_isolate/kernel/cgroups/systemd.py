"""Asking systemd for a cgroup of our own: a transient scope with Delegate=yes, over D-Bus.

Owns: one StartTransientUnit call to the user's service manager (root: the system's) and waiting for it to be done.
Refuses: to happen by itself (only mode="systemd"), and to parse any command's output. jeepney, a pure Python library
without dependencies, is imported only here.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel.cgroups import stale

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection

_NAME = "org.freedesktop.systemd1"
_TIMEOUT_S = 10.0
_WHAT = "cgroup mode systemd"


def enter_scope(run_id: str) -> str:
    """Move this process into a delegated scope of its own; returns the scope's name.

    systemd ends the scope when the last process in it has ended; there is no way back for a plain user, who may not
    write to the session's cgroup.

    Raises:
        BackendUnavailable: no bus, no service manager on it, or it refused; with the reason it gave.
    """
    try:
        from jeepney.io.blocking import open_dbus_connection
    except ImportError as error:
        raise BackendUnavailable(_WHAT, "jeepney is not installed", "pip install jeepney") from error
    name = f"pytest-isolate-{stale.safe(run_id, 40)}-{os.getpid()}-{time.monotonic_ns()}.scope"
    try:
        with open_dbus_connection(bus_address(), auth_timeout=_TIMEOUT_S) as bus:
            _start(bus, name)
    except (OSError, EOFError) as error:
        why = f"no answer from the bus at {bus_address()}: {error}"
        raise BackendUnavailable(_WHAT, why, "log in so that systemd --user runs, or loginctl enable-linger") from error
    return name


def bus_address() -> str:
    """The system's bus for root, who has no other; else the user's. Source: systemd.exec(5), file-hierarchy(7)."""
    if os.geteuid() == 0:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")


def _start(bus: DBusConnection, name: str) -> None:
    from jeepney import MatchRule, message_bus

    rule = MatchRule(type="signal", sender=_NAME, interface=f"{_NAME}.Manager", member="JobRemoved")
    _ask(bus, message_bus.AddMatch(rule))
    _ask(bus, _call("Subscribe"))  # the manager sends signals only to those who asked
    # The signal comes from the manager's unique name, which a filter by well-known name would not match.
    arrived = MatchRule(type="signal", interface=f"{_NAME}.Manager", member="JobRemoved")
    with bus.filter(arrived, bufsize=64) as queue:
        job = _ask(bus, _call("StartTransientUnit", "ssa(sv)a(sa(sv))", _scope(name)))[0]
        end = time.monotonic() + _TIMEOUT_S
        while True:
            _, path, _, result = bus.recv_until_filtered(queue, timeout=max(0.0, end - time.monotonic())).body
            if path == job:
                break
    if result != "done":
        raise BackendUnavailable(_WHAT, f"starting {name} ended with {result!r}", "see journalctl --user")


def _scope(name: str) -> tuple[Any, ...]:
    properties = [
        ("Description", ("s", "tests in sandboxes (pytest-isolate)")),
        ("Delegate", ("b", True)),
        ("PIDs", ("au", [os.getpid()])),
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    return (name, "fail", properties, [])


def _call(method: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> Any:
    from jeepney import DBusAddress, new_method_call

    manager = DBusAddress("/org/freedesktop/systemd1", bus_name=_NAME, interface=f"{_NAME}.Manager")
    return new_method_call(manager, method, signature, body)


def _ask(bus: DBusConnection, message: Any) -> tuple[Any, ...]:
    from jeepney import DBusErrorResponse
    from jeepney.wrappers import unwrap_msg

    reply = bus.send_and_get_reply(message, timeout=_TIMEOUT_S)
    try:
        body: tuple[Any, ...] = unwrap_msg(reply)
    except DBusErrorResponse as error:
        raise BackendUnavailable(_WHAT, f"{error.name}: {error.data}", "see systemctl --user status") from error
    return body

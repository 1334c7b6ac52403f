"""The service manager as it is reached over D-Bus: its methods, a unit's properties, and the end of a job.

Owns: a connection, made at the first question. Refuses: to know any policy, and to be shared with a fork.
Source: org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from jeepney import DBusAddress, DBusErrorResponse, MatchRule, Properties, message_bus, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

from pytest_isolate.errors import SetupError

NAME = "org.freedesktop.systemd1"
TIMEOUT_S = 10.0
_JOB_REMOVED = MatchRule(type="signal", interface=f"{NAME}.Manager", member="JobRemoved")

Property = tuple[str, tuple[str, Any]]


def bus_address() -> str:
    """The system's bus for root, else the user's. Source: systemd.exec(5), file-hierarchy(7)."""
    if os.geteuid() == 0:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")


class Manager:
    """See the module. Its methods raise OSError where nobody answers, SetupError where the answer is an error."""

    def __init__(self) -> None:
        self._bus: DBusConnection | None = None
        self._lock = threading.Lock()

    def _connected(self) -> DBusConnection:
        if self._bus is None:
            self._bus = open_dbus_connection(bus_address(), enable_fds=True, auth_timeout=TIMEOUT_S)
            match = MatchRule(type="signal", sender=NAME, interface=f"{NAME}.Manager", member="JobRemoved")
            self._ask(message_bus.AddMatch(match))
            self._ask(_method("Subscribe"))  # it sends signals only to those who asked
        return self._bus

    def _ask(self, message: Any) -> tuple[Any, ...]:
        assert self._bus is not None
        try:
            body: tuple[Any, ...] = unwrap_msg(self._bus.send_and_get_reply(message, timeout=TIMEOUT_S))
        except DBusErrorResponse as error:
            raise SetupError.of_tool("systemd", f"{error.name}: {'; '.join(map(str, error.data))}") from error
        return body

    def call(self, method: str, signature: str = "", *arguments: Any) -> tuple[Any, ...]:
        """A method of the manager."""
        with self._lock:
            self._connected()
            return self._ask(_method(method, signature, arguments))

    def version(self) -> int:
        """252; what comes after a dot or a space is a distribution's."""
        with self._lock:
            self._connected()
            said = self._ask(Properties(_manager()).get("Version"))[0][1]
        return int("".join(part for part in str(said).replace(".", " ").split()[0] if part.isdigit()) or 0)

    def start(self, unit: str, properties: Sequence[Property]) -> str:
        """Start a transient unit and wait until its job is done; the job's result: ``done``, ``failed``, ..."""
        with self._lock:
            bus = self._connected()
            with bus.filter(_JOB_REMOVED, bufsize=256) as queue:
                arguments = (unit, "fail", list(properties), [])
                job = self._ask(_method("StartTransientUnit", "ssa(sv)a(sa(sv))", arguments))[0]
                end = time.monotonic() + TIMEOUT_S
                while True:
                    signal = bus.recv_until_filtered(queue, timeout=max(0.0, end - time.monotonic()))
                    _, path, _, result = signal.body
                    if path == job:
                        return str(result)

    def service(self, unit: str) -> dict[str, Any]:
        """All properties of a service that is loaded."""
        with self._lock:
            self._connected()
            path = self._ask(_method("GetUnit", "s", (unit,)))[0]
            address = DBusAddress(path, bus_name=NAME, interface=f"{NAME}.Service")
            found = self._ask(Properties(address).get_all())[0]
        return {name: value for name, (_, value) in found.items()}

    def leave_in_child(self) -> None:
        """In a forked child: close the copy of what is the parent's. Its lock may be held by a thread that is not here."""
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close()

    def close(self) -> None:
        """Leave the bus. Fine twice."""
        with self._lock:
            if self._bus is not None:
                self._bus.close()
                self._bus = None


def _manager() -> DBusAddress:
    return DBusAddress("/org/freedesktop/systemd1", bus_name=NAME, interface=f"{NAME}.Manager")


def _method(name: str, signature: str = "", arguments: Sequence[Any] = ()) -> Any:
    return new_method_call(_manager(), name, signature or None, tuple(arguments))

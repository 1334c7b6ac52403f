"""Parent side of a test's network policy: what asks for one, what the test may change of it, what is told of it.

Owns: Asked (marker and fixture to a policy), Window (one item's share of its sandbox's traffic) and its words.
Refuses: to attach anything (pytest_isolate/networks.py), and to trust a test: it may change its own policy, if it asked for
the fixture, and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_isolate import wire
from pytest_isolate.errors import IsolateError, PolicyError
from pytest_isolate.outcome import Cause, Traffic
from pytest_isolate.policy import Network, Policy, unknown
from pytest_isolate.profile import vary

if TYPE_CHECKING:
    import pytest

    from pytest_isolate.network import AttachedPolicy, NetworkPolicy
    from pytest_isolate.sandbox_network import SandboxNetwork

SECTION = "Network"
#: Lines of a report's section for each kind; the rest is counted.
_MAX_LINES = 20
_MARKER_LISTS = ("allow", "deny", "log")
_MARKER_WORDS = (*_MARKER_LISTS, "default", "errno")
#: A test that does not read the answers it asked for is ended.
_ANSWER_S = 5.0

#: What the fixture may call of NetworkPolicy: each answers the policy with a rule more.
VERBS = frozenset("allow deny log allow_inbound deny_inbound allow_bind deny_bind allow_host redirect limit".split())


@dataclass(frozen=True, slots=True)
class Asked:
    """The markers ``netpolicy`` of an item, closest first, and whether it asks for the fixture ``net_policy``."""

    marks: tuple[pytest.Mark, ...]
    adjustable: bool
    nodeid: str

    def check(self, *, exempt: bool, mode: str) -> None:
        """Raise PolicyError where the item asks for a policy and for a way to run that cannot have one."""
        name = "fixture net_policy" if self.adjustable else "marker netpolicy"
        if exempt:
            raise PolicyError(name, "the test is exempted by isolate(False)", "drop one of the two")
        if mode == "inprocess" or (mode == "fresh" and self.adjustable):
            raise PolicyError(name, f"mode {mode} cannot have it", "use mode fork")

    def add_to(self, policy: Policy) -> Policy:
        """``policy`` with what the markers say; lists add up, of other words the closest marker's holds."""
        words: dict[str, Any] = {}
        for mark in reversed(self.marks):
            if mark.args:
                raise PolicyError("marker netpolicy", f"{mark.args!r}", "give keywords: allow=[...]")
            for name, value in mark.kwargs.items():
                if name not in _MARKER_WORDS:
                    raise unknown("marker netpolicy keyword", name, _MARKER_WORDS)
                words[f"net_{name}"] = (
                    [*words.get(f"net_{name}", ()), *_listed(value)] if name in _MARKER_LISTS else value
                )
        words.setdefault("net_default", "deny")
        policy = vary(policy, **words)
        return replace(policy, network=replace(policy.network, adjustable=self.adjustable))


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def check_allowed(always: tuple[str, ...]) -> None:
    """Refuse what has no meaning in ini ``isolate_net_allow``, also where no rules hold yet.

    Raises:
        PolicyError: names the text.
    """
    if always:
        from pytest_isolate.network.written import policy_of

        policy_of(Network(mode="policy", allow=always))


def with_always_allowed(policy: Policy, always: tuple[str, ...]) -> Policy:
    """``policy`` with ini ``isolate_net_allow``, where rules hold; checked now, not when the first test runs."""
    network = policy.network
    if not network.ruled:
        return policy
    network = replace(network, allow=(*always, *network.allow))
    from pytest_isolate.network.written import policy_of

    policy_of(network)
    return replace(policy, network=network)


class Window:
    """One item's share of its sandbox's traffic. ``whole``: all of it, for no other item ran there before."""

    def __init__(self, network: SandboxNetwork | None, *, whole: bool) -> None:
        self._network = network
        self._since = None if network is None or whole else network.mark()
        self._settled: Traffic | None = None

    def settle(self) -> None:
        """What passes from now on is another item's."""
        if self._network is not None:
            self._settled = self._network.traffic(self._since)

    def tell(self, report: pytest.TestReport) -> None:
        """Put the section on the report of the call, or of whatever failed; a refused connection names the failure."""
        if self._network is None or not (report.when == "call" or report.failed):
            return
        traffic = self._network.traffic(self._since)
        text = worded(traffic, self._network)
        if text:
            report.sections.append((SECTION, text))
        if report.failed and traffic is not None and traffic.refused and not hasattr(report, "isolate_cause"):
            report.isolate_cause = Cause.NETDENIED.value  # type: ignore[attr-defined]

    def properties(self) -> list[tuple[str, Any]]:
        """Counts and destinations, for junit and other reporters."""
        if self._network is None:
            return []
        traffic = self._settled or self._network.traffic(self._since)
        if traffic is None:
            return [("isolate_net", f"not available: {self._network.reason}")]
        found: list[tuple[str, Any]] = []
        for field in dataclasses.fields(Traffic):
            value = getattr(traffic, field.name)
            if not isinstance(value, tuple):
                found.append((f"isolate_net_{field.name}", value))
            elif value:
                found.append((f"isolate_net_{field.name}", "; ".join(_some("", value))))
        return found

    # -- what the fixture asks -------------------------------------------------------------------------------------

    def answer(self, request: Any, orders_fd: int) -> None:
        """Do what the test asks of its own policy, and tell it what came of it.

        Raises:
            WireError: it is no request, or the test does not read its answers.
        """
        match request:
            case {"call": str(call), "args": list(args), "words": dict(words)}:
                _send(orders_fd, self._answered(call, args, words))
            case _:
                raise wire.WireError("a request of the network that says nothing known")

    def _answered(self, call: str, args: list[Any], words: Mapping[str, Any]) -> dict[str, Any]:
        network = self._network
        if network is None or network.attached is None or not network.network.adjustable:
            why = "no network policy of the test's own is in force"
            return {
                "error": ["BackendUnavailable", "net_policy", why, "see the header of the run for what was given up"]
            }
        try:
            return {"value": self._do(network.attached, call, args, words)}
        except IsolateError as error:
            return {"error": [type(error).__name__, error.what, error.why, error.remedy]}
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            return {"error": ["PolicyError", f"net_policy.{call}", str(error), ""]}
        except OSError as error:
            return {"error": ["SetupError", f"net_policy.{call}", str(error), ""]}

    def _do(self, attached: AttachedPolicy, call: str, args: list[Any], words: Mapping[str, Any]) -> Any:
        if call in VERBS:
            attached.update(getattr(attached.policy, call)(*args, **words))
            return None
        return _CALLS[call](attached, self, *args) if call in _CALLS else _unknown(call)

    @property
    def sandbox(self) -> SandboxNetwork:
        """The network of the sandbox; only where ``answer`` has seen that there is one."""
        assert self._network is not None
        return self._network

    def base(self) -> NetworkPolicy:
        """What the markers and options said, before the test changed it."""
        from pytest_isolate.network.written import policy_of

        assert self._network is not None
        return policy_of(self._network.network)

    def events(self) -> list[dict[str, Any]]:
        return [_plain(event) for event in self.sandbox.told(self._since)[0]]

    def flows(self) -> list[dict[str, Any]]:
        return [_plain(flow) for flow in self.sandbox.flows(self._since)]

    def stats(self) -> dict[str, int]:
        return _plain(self.sandbox.told(self._since)[1])


def _unknown(call: str) -> None:
    raise PolicyError(f"net_policy.{call[:40]}", "unknown", "use " + ", ".join(sorted(VERBS)))


def _set(attached: AttachedPolicy, _window: Window, name: str, value: Any) -> None:
    from pytest_isolate.network import Verdict
    from pytest_isolate.network.rules import parse_errno

    if name == "errno":
        fields: dict[str, Any] = {"errno": parse_errno(value)}
    elif name in ("default", "inbound", "bind") and value in ("allow", "deny"):
        fields = {name: Verdict[value.upper()]}
    elif name == "raw" and isinstance(value, bool):
        fields = {name: value}
    else:
        raise PolicyError(f"net_policy.{name}", f"{value!r} has no meaning", "write 'allow' or 'deny'")
    attached.update(replace(attached.policy, **fields))


def _reset(attached: AttachedPolicy, window: Window) -> None:
    window.sandbox.drop_programs()
    base = window.base()
    if attached.policy is not base:
        attached.update(base)
    attached.renew_limits()


def _attach_program(_attached: AttachedPolicy, window: Window, text: str, hook: str, function: str) -> dict[str, Any]:
    sandbox = window.sandbox
    number = sandbox.attach_program(text, hook, function)
    return {"number": number, "maps": sorted(sandbox.programs[number].maps)}


def _map(_attached: AttachedPolicy, window: Window, number: int, name: str, verb: str, *args: Any) -> Any:
    """One of TypedMap's verbs on a map of a program of this sandbox."""
    found = window.sandbox.programs[number].maps[name] if number < len(window.sandbox.programs) else None
    if found is None or verb not in _MAP_VERBS:
        raise PolicyError("eBPF program", "it is attached no more", "attach it again after reset()")
    answer = getattr(found, verb)(*args)
    return list(answer) if verb == "items" else answer


_MAP_VERBS = ("get", "set", "delete", "items")


_CALLS: Mapping[str, Callable[..., Any]] = {
    "set": _set,
    "reset": _reset,
    "stats": lambda _attached, window: window.stats(),
    "events": lambda _attached, window: window.events(),
    "flows": lambda _attached, window: window.flows(),
    "attach_program": _attach_program,
    "map": _map,
}


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass of numbers, enums, addresses and texts as the wire can hold it."""
    return {field.name: _flat(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _flat(value: Any) -> Any:
    if isinstance(value, bool | float | str):
        return value
    return int(value) if isinstance(value, int) else str(value)


def _send(fd: int, answer: dict[str, Any]) -> None:
    """Write the answer, waiting a while for a reader who is slow, and not for one who does not read."""
    view = memoryview(wire.pack("network", answer))
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    end = time.monotonic() + _ANSWER_S
    os.set_blocking(fd, False)
    try:
        with contextlib.suppress(BrokenPipeError):  # it has died: the conversation will see that
            while view:
                if time.monotonic() > end:
                    raise wire.WireError("it asked of its network, and does not read the answer")
                if poller.poll(100):
                    view = view[os.write(fd, view) :]
    finally:
        os.set_blocking(fd, True)


# -- words -------------------------------------------------------------------------------------------------------------


def worded(traffic: Traffic | None, network: SandboxNetwork) -> str:
    """The section's text; empty where there is nothing to tell."""
    lines = []
    if network.subnet is not None:
        lines.append(
            f"private network: {network.subnet.test[0]}, {network.subnet.test[1]}; host {network.subnet.host[0]}"
        )
    if traffic is None:
        return "\n".join([*lines, f"counts: not available: {network.reason}"])
    if not any(getattr(traffic, field.name) for field in dataclasses.fields(Traffic)):
        return "\n".join([*lines, "no traffic, nothing refused"])
    lines.append(
        f"out {traffic.packets_out} packets, {traffic.l3_bytes_out} bytes; "
        f"in {traffic.packets_in} packets, {traffic.l3_bytes_in} bytes; "
        f"{traffic.connections_out} connections opened, {traffic.connections_in} accepted; {traffic.denied} refused"
    )
    lines += _some("contacted ", traffic.contacted)
    if traffic.flows_lost:
        lines.append(
            f"the table of flows was full: destinations of {traffic.flows_lost} packets may be missing, and have no record in flows()"
        )
    lines += _some("", traffic.logged)
    lines += _some("", traffic.refused)
    if traffic.events_lost:
        lines.append(f"{traffic.events_lost} more refused or logged flows have no line: there were too many at once")
    return "\n".join(lines)


def _some(word: str, texts: tuple[str, ...]) -> list[str]:
    more = [f"{word}... and {len(texts) - _MAX_LINES} more"] if len(texts) > _MAX_LINES else []
    return [f"{word}{text}" for text in texts[:_MAX_LINES]] + more

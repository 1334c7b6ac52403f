"""Network policy: rules to maps, counters, flows, events, host names, redirects."""

from pytest_isolate.kernel.bpf.layout import Verdict
from pytest_isolate.network.attached import AttachedPolicy
from pytest_isolate.network.engine import PolicyEngine
from pytest_isolate.network.rules import COUNT_ONLY, NetworkPolicy, Rule
from pytest_isolate.network.traffic import Event, FlowRecord, Stats

__all__ = [
    "COUNT_ONLY",
    "AttachedPolicy",
    "Event",
    "FlowRecord",
    "NetworkPolicy",
    "PolicyEngine",
    "Rule",
    "Stats",
    "Verdict",
]

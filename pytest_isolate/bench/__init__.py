"""`pytest-isolate bench`: the tables of docs/PERFORMANCE.md on the user's own machine.

A package of its own, imported by nothing but that command: what measures must not be in the plugin's import path. Its C side
(native/bench) is built and shipped beside the library, so that the floor is there where no compiler is.
Owns: the names of the tables. Refuses: to judge; no figure is asserted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pytest_isolate.bench import forkexec, lookup, memory, network, parallel, pidns, soak
from pytest_isolate.bench.measure import Effort
from pytest_isolate.bench.table import Table

#: name -> what measures it.
TABLES: Mapping[str, Callable[[Effort], list[Table]]] = MappingProxyType(
    {
        "forkexec": forkexec.measure,
        "parallel": parallel.measure,
        "memory": memory.measure,
        "pidns": pidns.measure,
        "lookup": lookup.measure,
        "network": network.measure,
        "soak": soak.measure,
    }
)

"""The other front end: bcc compiles bpf/ at run time."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_isolate.errors import BackendUnavailable
from pytest_isolate.kernel.bpf.dataplane import Dataplane
from pytest_isolate.kernel.bpf.layout import ProgramSpec


def load(specs: Mapping[str, ProgramSpec], *, sizes: Mapping[str, int] | None = None) -> Dataplane:
    raise BackendUnavailable("bcc", "not built yet", "use libbpf")

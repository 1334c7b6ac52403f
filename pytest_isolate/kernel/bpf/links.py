"""Attachments as links: file descriptors that the kernel detaches when their last holder is gone, by kill -9 too.

Owns: Links, a set of link descriptors on one cgroup or interface.
Refuses: BPF_PROG_ATTACH, which would outlive us on a cgroup that stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from pytest_isolate.kernel.bpf.dataplane import Dataplane
from pytest_isolate.kernel.bpf.libbpf import check, library

if TYPE_CHECKING:
    from typing_extensions import Self


class Links:
    """Programs of one data plane attached to one target (a cgroup directory's fd, or an interface index)."""

    def __init__(self, plane: Dataplane, target: int) -> None:
        self._plane = plane
        self._target = target
        self._fds: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def names(self) -> frozenset[str]:
        """Programs attached now."""
        return frozenset(self._fds)

    def attach(self, names: Iterable[str]) -> None:
        """Attach those of ``names`` that are not yet. Raises OSError; what was attached stays, for close()."""
        create = library().bpf_link_create
        for name in names:
            if name not in self._fds:
                kind = self._plane.specs[name].attach
                self._fds[name] = check(create(self._plane.programs[name], self._target, kind, None), f"attach {name}")

    def detach(self, names: Iterable[str]) -> None:
        """Detach those of ``names`` that are attached."""
        for name in names:
            if name in self._fds:
                os.close(self._fds.pop(name))

    def fds(self) -> list[int]:
        """Link descriptors: what a child must not keep."""
        return list(self._fds.values())

    def close(self) -> None:
        """Detach everything. Idempotent."""
        self.detach(tuple(self._fds))

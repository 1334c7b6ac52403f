"""Whose a thing is: the process that made it, or one that was forked from that and has only a copy.

Owns: ``here``. Refuses: to say so by number: in nested PID namespaces parent and child can have the same.
"""

from __future__ import annotations

import os

#: Stands for this process. Who makes what a forked child must not undo keeps it, and asks: ``self._owner is forks.here``.
here: object = object()


def _renew() -> None:
    global here
    here = object()


os.register_at_fork(after_in_child=_renew)  # of os.fork, and of native.fork

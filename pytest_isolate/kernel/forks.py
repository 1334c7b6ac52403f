"""Whose a thing is: the process that made it, or one that was forked from that and has only a copy.

Owns: ``here``, and locks that no thread of another process holds. Refuses: to say whose by number: in nested PID namespaces
parent and child can have the same.
"""

from __future__ import annotations

import os
import threading
import weakref

#: Stands for this process. Who makes what a forked child must not undo keeps it, and asks: ``self._owner is forks.here``.
here: object = object()
#: By object: the name of its lock.
_locked: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()


def own_lock(of: object, name: str) -> threading.RLock:
    """A re-entrant lock for attribute ``name`` of ``of``, which has a new one in a forked child: a thread of the parent's may have
    held it, and is not there to let it go. One for each object.
    """
    _locked[of] = name
    return threading.RLock()


def _renew() -> None:
    global here
    here = object()
    for of, name in tuple(_locked.items()):
        setattr(of, name, threading.RLock())


os.register_at_fork(after_in_child=_renew)  # of os.fork, and of native.fork

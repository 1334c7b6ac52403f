"""What a forked child keeps of its parent's for good. Whose a thing is: forks.py."""

from __future__ import annotations


def keep(parents: object) -> None:
    """In a forked child: never collect this, also not when the interpreter ends.

    A generator would run to its end here, and a socket or a file would close a number that is another's by then.
    """
    import ctypes  # in children only: those who import us have no need of it

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(parents))

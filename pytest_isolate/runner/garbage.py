"""Python's garbage collection beside forks: a collection of all objects writes to every page of the heap.

Owns: age(). Refuses: to collect, to switch collection off, and to hide objects from gc.collect() or gc.get_objects().
"""

from __future__ import annotations

import gc


def age() -> None:
    """Let all there is count as old, and as just looked at.

    In a child: a collection that is due by its parent's count, not by the test's, would copy the heap, in one child after the
    other. In the parent, before the first fork: so would the one that is due after a collection of tests, beside the first child.
    """
    if gc.get_freeze_count() == 0:  # else somebody has done it already, and for good
        gc.freeze()
        gc.unfreeze()

"""What a forked child must not do, go on as its parent; and a child that is forked only to see how it ends.

Owns: the end of such a child, whatever is raised in it. Refuses: to judge an end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from pytest_isolate.backend import Backend
from pytest_isolate.policy import Policy

if TYPE_CHECKING:
    from pytest_isolate.kernel.native import Exited, Joined

_TRIAL_S = 10.0


def give_up(error: BaseException) -> NoReturn:
    """In a child that has not become what it was forked for: say why on standard error, leave with the errno."""
    with contextlib.suppress(BaseException):
        os.write(2, "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace"))
    os._exit(_status_of(error))


def _nothing() -> None:
    pass


def end_of(
    backend: Backend,
    policy: Policy,
    joined: Joined | None = None,
    *,
    within: Callable[[], object] = _nothing,
    meanwhile: Callable[[], object] = _nothing,
) -> Exited | None:
    """Fork under ``policy`` a child that does what ``within`` says and leaves; None where it hung. Nothing of it is left.

    What is raised in it is told by its status, an errno. ``meanwhile``: what the parent does when it has started.

    Raises:
        SetupError: it could not be started.
    """
    child = backend.fork(policy, joined)
    if child is None:
        _leave(within)
    try:
        meanwhile()
        return child.wait(_TRIAL_S)
    finally:
        child.kill()
        child.reap(block=True)
        child.close()


def _leave(within: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        within()
        status = 0
    except BaseException as error:
        status = _status_of(error)
    finally:
        os._exit(status)


def _status_of(error: BaseException) -> int:
    return errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None) or 1

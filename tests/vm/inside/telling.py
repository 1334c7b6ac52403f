"""A check becomes one JSON line: run in a child with a deadline, its answer one of four states.

Owns: Refused, Degraded, and how an exception of a check is told.
Refuses: to judge whether an answer is the expected one; the row says that.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Mapping

DEADLINE_S = 120
#: A test suite on an emulated CPU takes minutes: those of row 6.1 eight, alone on the machine.
SUITE_DEADLINE_S = 2400
Check = Callable[[], str]


class Refused(Exception):
    """There is no such limit here, or not for us; the text says which file, call or reason."""


class Degraded(Exception):
    """It works by a lesser means; the text says which."""


def tell(layer: str, checks: Mapping[str, Check], deadline_s: int = DEADLINE_S) -> None:
    """Run the checks one after another; print a line for each."""
    for name, check in checks.items():
        print(json.dumps({"layer": layer, "check": name, **in_child(check, deadline_s)}), flush=True)


def answer(check: Check) -> dict[str, str]:
    """The state (enforced, degraded, refused, failed) and the evidence of one check."""
    try:
        return {"state": "enforced", "evidence": check()}
    except Degraded as less:
        return {"state": "degraded", "evidence": str(less)}
    except Refused as no:
        return {"state": "refused", "evidence": str(no)}
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOSYS):
            return {"state": "refused", "evidence": f"{errno.errorcode[error.errno]} {error.filename or ''}".strip()}
        return {"state": "failed", "evidence": traceback.format_exc()}
    except BaseException:  # a check that cannot be told must not take the others along
        return {"state": "failed", "evidence": traceback.format_exc()}


def in_child(check: Check, deadline_s: int) -> dict[str, str]:
    """``answer`` in a child of its own, so that namespaces entered, limits set and signals sent stay there."""
    with tempfile.TemporaryFile() as told:
        pid = os.fork()
        if pid == 0:
            signal.alarm(deadline_s)
            os.setsid()
            os.write(told.fileno(), json.dumps(answer(check)).encode())
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        told.seek(0)
        text = told.read().decode()
    told_state: dict[str, str] = json.loads(text or "{}")
    return told_state or {"state": "failed", "evidence": f"check ended with wait status {status}"}

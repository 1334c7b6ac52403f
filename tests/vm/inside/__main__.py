"""Run every check, or those named, each in a child with a deadline; print one JSON line per check.

Owns: the loop and the wording of a line. Refuses: to judge whether an answer is the expected one; the row says that.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable

from . import groups, limits, privileges

DEADLINE_S = 90
CHECKS: dict[str, Callable[[groups.Layout], str]] = {**limits.CHECKS, **privileges.CHECKS}


def answer(check: Callable[[groups.Layout], str], layout: groups.Layout) -> dict[str, str]:
    """The state (enforced, degraded, refused, failed) and the evidence of one check."""
    try:
        return {"state": "enforced", "evidence": check(layout)}
    except groups.Degraded as less:
        return {"state": "degraded", "evidence": str(less)}
    except groups.Refused as no:
        return {"state": "refused", "evidence": str(no)}
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOSYS):
            return {"state": "refused", "evidence": f"{errno.errorcode[error.errno]} {error.filename or ''}".strip()}
        return {"state": "failed", "evidence": traceback.format_exc()}
    except BaseException:  # a check that cannot be told must not take the others along
        return {"state": "failed", "evidence": traceback.format_exc()}


def in_child(check: Callable[[groups.Layout], str], layout: groups.Layout) -> dict[str, str]:
    """``answer`` in a child of its own, so that namespaces entered, limits set and signals sent stay there."""
    with tempfile.TemporaryFile() as told:
        pid = os.fork()
        if pid == 0:
            signal.alarm(DEADLINE_S)
            os.setsid()
            os.write(told.fileno(), json.dumps(answer(check, layout)).encode())
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        told.seek(0)
        text = told.read().decode()
    told_state: dict[str, str] = json.loads(text or "{}")
    return told_state or {"state": "failed", "evidence": f"check ended with wait status {status}"}


def main(names: list[str]) -> None:
    layout = groups.Layout.find()
    print(json.dumps({"check": "row", "state": "enforced", "evidence": layout.describe()}), flush=True)
    for name in names or CHECKS:
        print(json.dumps({"check": name, **in_child(CHECKS[name], layout)}), flush=True)


main(sys.argv[1:])

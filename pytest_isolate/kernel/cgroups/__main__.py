"""``python -m pytest_isolate.kernel.cgroups [auto|v1|v2|systemd]``: what this host has and what was taken, as JSON.

Owns: showing; it makes a run's directories for a moment, tries them, and removes them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from pytest_isolate.errors import IsolateError
from pytest_isolate.kernel.cgroups import MODES, Hierarchy, discover, open_manager


def main(arguments: list[str]) -> int:
    """Print one JSON object; status 1 when no cgroup could be made, 2 for a bad argument."""
    mode: Any = arguments[0] if arguments else "auto"
    if mode not in MODES:
        print(f"usage: python -m pytest_isolate.kernel.cgroups [{'|'.join(MODES)}]", file=sys.stderr)
        return 2
    layout = discover()
    hierarchies = [_plain(hierarchy) for hierarchy in (*layout.v1, layout.v2) if hierarchy is not None]
    shown: dict[str, Any] = {"layout": layout.kind, "hierarchies": hierarchies, "mode": mode}
    try:
        with open_manager("show", mode=mode) as manager:
            shown["capabilities"] = {name: dataclasses.asdict(c) for name, c in manager.capabilities().items()}
            shown["taken"] = manager.describe()
            usable = bool(manager.branches)
    except IsolateError as error:
        shown["error"], usable = str(error), False
    print(json.dumps(shown, indent=2))
    return 0 if usable else 1


def _plain(hierarchy: Hierarchy) -> dict[str, Any]:
    fields = dataclasses.asdict(hierarchy)
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in fields.items()}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

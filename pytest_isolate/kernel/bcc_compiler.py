"""Compiles eBPF C with bcc and prints the instructions. Runs in a process of its own, under the distribution's Python.

Owns: the import of bcc, which costs 50-95 ms and 158 MB of memory that no process that forks tests should carry.
Refuses: to load anything: what it prints is instructions, and maps are named by descriptor numbers of its parent.
Input on stdin, JSON: {"text", "cflags", "functions"}. Output, JSON: {"functions": {name: hex}} or {"error", "log"}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

#: Asked for no text, it still tells whether the headers are there.
_NOTHING = "int nothing(void *context) { return 0; }"


def compile_text(request: dict[str, Any]) -> dict[str, str]:
    """Instructions of each function, in hex."""
    from bcc import BPF

    program = BPF(text=(request["text"] or _NOTHING).encode(), cflags=request["cflags"])
    found = {}
    for name in request["functions"]:
        try:
            found[name] = program.dump_func(name.encode()).hex()
        except Exception as error:
            raise RuntimeError(f"no function {name} in the program: {error}") from None
    return found


def main() -> None:
    """Answer one request. clang and bcc write their complaints to descriptors 1 and 2: they are caught in a file."""
    request = json.load(sys.stdin)
    answer_fd = os.dup(1)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            import bcc

            if not hasattr(bcc, "BPF"):
                answer = {"error": "unrelated", "log": getattr(bcc, "__file__", "")}
            else:
                answer = {"functions": compile_text(request)}
        except ImportError as error:
            answer = {"error": "missing", "log": str(error)}
        except Exception as error:
            log.seek(0)
            answer = {"error": str(error), "log": log.read().decode(errors="replace")[-8000:]}
    with open(answer_fd, "w", encoding="ascii") as out:
        json.dump(answer, out)


if __name__ == "__main__":
    main()

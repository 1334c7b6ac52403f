"""Compiles eBPF C with bcc and hands over the instructions. Runs in a process of its own, under the distribution's Python.

Owns: the import of bcc, which costs 50-95 ms and 158 MB of memory that no process that forks tests should carry; and the
maps that a text declares, whose descriptors it hands over too.
Refuses: to load programs; and, for a text of somebody else's, to read a file that no compiler needs (Landlock).
On descriptor 0, a socket: in, JSON, to its end: {"text", "cflags", "functions", "confine"}; out, JSON, with descriptors:
{"functions": {name: hex}, "maps": [...]} or {"error", "log"}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import sys
import tempfile
from typing import Any

#: Asked for no text, it still tells whether the headers are there.
_NOTHING = "int nothing(void *context) { return 0; }"
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _NO_NEW_PRIVS = 444, 445, 446, 38
_PDEATHSIG = 1
#: EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV: a rule for a file may name no others.
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15


def compile_text(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """The answer, and the descriptors of the maps in it. Without a function's name the only one of the text is taken."""
    from bcc import BPF

    program = BPF(text=(request["text"] or _NOTHING).encode(), cflags=request["cflags"])
    names = request["functions"]
    if names is None:
        names = _functions(program)
        if len(names) != 1:
            raise RuntimeError(f"it has {len(names)} functions ({', '.join(names)}): name the one to attach")
    found = {}
    for name in names:
        try:
            found[name] = program.dump_func(name.encode()).hex()
        except Exception as error:
            raise RuntimeError(f"no function {name} in the program: {error}") from None
    maps = [_described(program, number) for number in range(_lib().bpf_num_tables(program.module))]
    return {"functions": found, "maps": maps}, [one["fd"] for one in maps]


def _lib() -> Any:
    from bcc.libbcc import lib

    for name in ("bpf_num_tables", "bpf_table_key_size_id", "bpf_table_leaf_size_id", "bpf_num_functions"):
        function = getattr(lib, name)
        function.restype = ctypes.c_size_t
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t][: 1 if "num" in name else 2]
    lib.bpf_table_name.restype, lib.bpf_table_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]
    return lib


def _functions(program: Any) -> list[str]:
    lib = _lib()
    return [lib.bpf_function_name(program.module, n).decode() for n in range(lib.bpf_num_functions(program.module))]


def _described(program: Any, number: int) -> dict[str, Any]:
    lib, module = _lib(), program.module
    name = lib.bpf_table_name(module, number)
    return {
        "name": name.decode(),
        "fd": lib.bpf_table_fd(module, name),
        "type": lib.bpf_table_type_id(module, number),
        "key_bytes": lib.bpf_table_key_size_id(module, number),
        "value_bytes": lib.bpf_table_leaf_size_id(module, number),
        "max_entries": lib.bpf_table_max_entries_id(module, number),
        "flags": lib.bpf_table_flags_id(module, number),
        "key": _layout(program, lib.bpf_table_key_desc(module, name)),
        "value": _layout(program, lib.bpf_table_leaf_desc(module, name)),
    }


def _layout(program: Any, description: bytes) -> Any:
    """{"int": signed}, {"array": [length, bytes of each, layout]}, {"struct": [[name, offset, bytes, layout]]}, None."""
    try:
        return _of_type(program._decode_table_type(json.loads(description)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # bytes, then


def _of_type(kind: Any) -> Any:
    if issubclass(kind, ctypes.Array):
        text = kind._type_ is ctypes.c_char
        return None if text else {"array": [kind._length_, ctypes.sizeof(kind._type_), _of_type(kind._type_)]}
    if issubclass(kind, ctypes.Structure):
        rows = [(field[0], getattr(kind, field[0]), field[1]) for field in kind._fields_ if field[0][:6] != "__pad_"]
        return {"struct": [[name, at.offset, ctypes.sizeof(of), _of_type(of)] for name, at, of in rows]}
    if issubclass(kind, ctypes.Union) or kind._type_ not in "bBhHiIlLqQ?":
        return None
    return {"int": kind._type_ in "bhilq"}


def confine(rights: int, rules: list[tuple[int, str]]) -> None:
    """Read and write only beneath the paths of ``rules``, for good. Source: landlock(7)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: Any) -> int:
        result = int(libc.syscall(number, *arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), "Landlock")
        return result

    ruleset = call(_CREATE_RULESET, struct.pack("=Q", rights), ctypes.c_size_t(8), 0)
    for allowed, path in rules:
        if os.path.exists(path):
            under = os.open(path, os.O_PATH | os.O_CLOEXEC)
            fitting = allowed if os.path.isdir(path) else allowed & _OF_FILES
            call(_ADD_RULE, ruleset, 1, struct.pack("=Qi", fitting, under), 0)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    call(_RESTRICT_SELF, ruleset, 0)


def answer_to(request: dict[str, Any], log: Any) -> tuple[dict[str, Any], list[int]]:
    """What to say to one request, whatever goes wrong."""
    try:
        import bcc

        if not hasattr(bcc, "BPF"):
            return {"error": "unrelated", "log": getattr(bcc, "__file__", "")}, []
        if request["confine"]:
            confine(*request["confine"])
        return compile_text(request)
    except ImportError as error:
        return {"error": "missing", "log": str(error)}, []
    except Exception as error:
        log.seek(0)
        return {"error": str(error), "log": log.read().decode(errors="replace")[-8000:]}, []


def main() -> None:
    """Answer one request. clang and bcc write their complaints to descriptors 1 and 2: they are caught in a file."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)  # whoever asked is gone: so is the question
    channel = socket.socket(fileno=0)
    with channel.makefile("rb") as asked:
        request = json.load(asked)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        answer, fds = answer_to(request, log)
    socket.send_fds(channel, [b"\n"], fds)
    channel.sendall(json.dumps(answer).encode())
    sys.stdout.flush()


if __name__ == "__main__":
    main()

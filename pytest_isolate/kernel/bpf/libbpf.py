"""libbpf.so.1 through ctypes: prototypes, one error rule, and the verifier's words kept for the error text.

Owns: the library handle. Every function here is thin: arguments in, value or OSError out.
Refuses: policy and lifetime (see maps.py, dataplane.py, links.py). Loaded on first use, never at import.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from typing import Any

from pytest_isolate.errors import BackendUnavailable

_SONAMES = ("libbpf.so.1",)
_P, _I, _U, _Z, _S = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_size_t, ctypes.c_char_p

_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "libbpf_set_print": (_P, [_P]),
    "bpf_object__open_mem": (_P, [_S, _Z, _P]),
    "bpf_object__load": (_I, [_P]),
    "bpf_object__close": (None, [_P]),
    "bpf_object__next_program": (_P, [_P, _P]),
    "bpf_object__next_map": (_P, [_P, _P]),
    "bpf_program__name": (_S, [_P]),
    "bpf_program__fd": (_I, [_P]),
    "bpf_program__set_autoload": (_I, [_P, ctypes.c_bool]),
    "bpf_map__name": (_S, [_P]),
    "bpf_map__fd": (_I, [_P]),
    "bpf_map__type": (_U, [_P]),
    "bpf_map__key_size": (_U, [_P]),
    "bpf_map__value_size": (_U, [_P]),
    "bpf_map__max_entries": (_U, [_P]),
    "bpf_map__map_flags": (_U, [_P]),
    "bpf_map__set_max_entries": (_I, [_P, _U]),
    "bpf_map__reuse_fd": (_I, [_P, _I]),
    "bpf_map_create": (_I, [_U, _S, _U, _U, _U, _P]),
    "bpf_prog_load": (_I, [_U, _S, _S, _P, _Z, _P]),
    "bpf_map_lookup_elem": (_I, [_I, _P, _P]),
    "bpf_map_update_elem": (_I, [_I, _P, _P, ctypes.c_uint64]),
    "bpf_map_delete_elem": (_I, [_I, _P]),
    "bpf_map_get_next_key": (_I, [_I, _P, _P]),
    "bpf_map_update_batch": (_I, [_I, _P, _P, _P, _P]),
    "bpf_map_delete_batch": (_I, [_I, _P, _P, _P]),
    "bpf_map_lookup_batch": (_I, [_I, _P, _P, _P, _P, _P, _P]),
    "bpf_link_create": (_I, [_I, _I, _U, _P]),
    "bpf_prog_test_run_opts": (_I, [_I, _P]),
    "libbpf_num_possible_cpus": (_I, []),
}

_PRINT = ctypes.CFUNCTYPE(_I, _I, _S, _P)


class MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts of bpf/bpf.h (1.1)."""

    _fields_ = [
        ("sz", _Z), ("btf_fd", _U), ("btf_key_type_id", _U), ("btf_value_type_id", _U), ("btf_vmlinux_value_type_id", _U),
        ("inner_map_fd", _U), ("map_flags", _U), ("map_extra", ctypes.c_uint64), ("numa_node", _U), ("map_ifindex", _U),
    ]  # fmt: skip


class ProgLoadOpts(ctypes.Structure):
    """struct bpf_prog_load_opts of bpf/bpf.h (1.1)."""

    _fields_ = [
        ("sz", _Z), ("attempts", _I), ("expected_attach_type", _U), ("prog_btf_fd", _U), ("prog_flags", _U),
        ("prog_ifindex", _U), ("kern_version", _U), ("attach_btf_id", _U), ("attach_prog_fd", _U),
        ("attach_btf_obj_fd", _U), ("fd_array", _P), ("func_info", _P), ("func_info_cnt", _U), ("func_info_rec_size", _U),
        ("line_info", _P), ("line_info_cnt", _U), ("line_info_rec_size", _U), ("log_level", _U), ("log_size", _U),
        ("log_buf", _P),
    ]  # fmt: skip


class TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts of bpf/bpf.h (1.1)."""

    __test__ = False
    _fields_ = [
        ("sz", _Z), ("data_in", _P), ("data_out", _P), ("data_size_in", _U), ("data_size_out", _U), ("ctx_in", _P),
        ("ctx_out", _P), ("ctx_size_in", _U), ("ctx_size_out", _U), ("retval", _U), ("repeat", _I), ("duration", _U),
        ("flags", _U), ("cpu", _U), ("batch_size", _U),
    ]  # fmt: skip


class LibBpf:
    """The loaded library. ``complaints`` holds what it printed (verifier logs too) since the last ``clear``."""

    def __init__(self, path: str) -> None:
        self._lib = ctypes.CDLL(path, use_errno=True)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self.complaints: list[str] = []
        self._vsnprintf = ctypes.CDLL(None).vsnprintf
        self._vsnprintf.argtypes = [_P, _Z, _S, _P]
        self._keep = _PRINT(self._print)
        self._lib.libbpf_set_print(ctypes.cast(self._keep, _P))
        self.cpus: int = self._lib.libbpf_num_possible_cpus()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def _print(self, level: int, form: bytes, arguments: int) -> int:
        if level <= 1:  # LIBBPF_WARN, LIBBPF_INFO
            text = ctypes.create_string_buffer(1 << 16)
            self._vsnprintf(text, len(text), form, arguments)
            self.complaints.append(text.value.decode(errors="replace"))
        return 0


@functools.cache
def library() -> LibBpf:
    """The library, loaded once per process.

    Raises:
        BackendUnavailable: there is no libbpf 1.x here.
    """
    for name in _SONAMES:
        try:
            return LibBpf(name)
        except OSError as error:
            why = str(error)
    raise BackendUnavailable(
        "network policy", f"libbpf 1.x cannot be loaded ({why})", "install libbpf1 (Debian), libbpf (Fedora)"
    )


def check(result: int, what: str) -> int:
    """``result`` when it is not negative, else OSError. libbpf 1.x answers -errno itself."""
    if result >= 0:
        return result
    raise OSError(-result, f"{what}: {errno.errorcode.get(-result, '')} {os.strerror(-result)}")

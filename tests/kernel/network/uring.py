"""socket(2) made the ordinary way, connect(2) through io_uring: by hand, so that no library is needed.

Source: io_uring(7), linux/io_uring.h.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
import time

_SETUP, _ENTER = 425, 426
_SQPOLL, _SINGLE_MMAP = 2, 1
_CONNECT = 16
_OFF_SQES = 0x10000000


def connect_by_uring(address: tuple[str, int], sqpoll: bool) -> str:
    """ "ok" or the errno's name."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(120)
    struct.pack_into("=IIIII", params, 0, 0, 0, _SQPOLL if sqpoll else 0, 0, 1000)
    ring = libc.syscall(_SETUP, 4, params)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    sq = struct.unpack_from("=10I", params, 40)  # head tail mask entries flags dropped array ...
    cq = struct.unpack_from("=10I", params, 80)  # head tail mask entries overflow cqes ...
    size = max(sq[6] + 4 * sq[3] * 4, cq[5] + 16 * 16)
    rings = mmap.mmap(ring, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
    entries = mmap.mmap(ring, 64 * 4, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFF_SQES)
    made = socket.socket()
    name = ctypes.create_string_buffer(
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", address[1]) + socket.inet_aton(address[0]) + b"\0" * 8, 16
    )
    struct.pack_into("=BBHiQQIIQ", entries, 0, _CONNECT, 0, 0, made.fileno(), 16, ctypes.addressof(name), 0, 0, 0)
    struct.pack_into("=I", rings, sq[6], 0)
    struct.pack_into("=I", rings, sq[1], 1)
    wakeup = 3 if sqpoll else 1  # IORING_ENTER_GETEVENTS | SQ_WAKEUP
    libc.syscall(_ENTER, ring, 0 if sqpoll else 1, 0 if sqpoll else 1, wakeup, None, 0)
    end = time.monotonic() + 3
    while struct.unpack_from("=I", rings, cq[1])[0] == struct.unpack_from("=I", rings, cq[0])[0]:
        if time.monotonic() > end:
            return "TIMEOUT"
        time.sleep(0.001)
    result = struct.unpack_from("=Qi", rings, cq[5])[1]
    return "ok" if result == 0 else errno.errorcode.get(-result, str(result))

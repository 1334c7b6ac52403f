"""BPF_PROG_TEST_RUN: a loaded program on a packet of ours, timed by the kernel, or handed to the stack as live frames.

Owns: the two calls. Refuses: to attach anything. Source: Documentation/bpf/bpf_prog_run.rst.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

from pytest_isolate.kernel.bpf.libbpf import TestRunOpts, check, library

_LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18


@dataclass(frozen=True, slots=True)
class Run:
    """What the program answered, and nanoseconds per run (the kernel's mean over ``repeat``)."""

    retval: int
    duration_ns: int


def test_run(program_fd: int, frame: bytes, repeat: int = 1) -> Run:  # noqa: PT028 - the kernel's name, no test
    """Run on one Ethernet frame, ``repeat`` times."""
    options = TestRunOpts(sz=ctypes.sizeof(TestRunOpts), repeat=repeat)
    options.data_in, options.data_size_in = ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p), len(frame)
    check(library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)), "test run")
    return Run(options.retval, options.duration)


def live_frames(program_fd: int, frame: bytes, ifindex: int, count: int, batch: int = 64) -> None:
    """Give ``count`` copies of a frame to the stack as if interface ``ifindex`` (of this namespace) had received them."""
    options = TestRunOpts(sz=ctypes.sizeof(TestRunOpts), repeat=count, flags=_LIVE_FRAMES, batch_size=batch)
    options.data_in, options.data_size_in = ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p), len(frame)
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    context = ctypes.create_string_buffer(struct.pack("=6I", 0, len(frame), 0, ifindex, 0, 0), 24)
    options.ctx_in, options.ctx_size_in = ctypes.addressof(context), 24
    check(library().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)), "live frames")


test_run.__test__ = False  # type: ignore[attr-defined]

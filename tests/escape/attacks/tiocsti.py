"""Typing into the terminal of whoever started it (CVE-2017-5226)."""

from tests.escape.attack import Attack
from tests.escape.victims import terminal

ATTACK = Attack(
    what="typing into the terminal of whoever started it (CVE-2017-5226)",
    program="""
import fcntl
attempt(lambda: fcntl.ioctl(int(sys.argv[1]), 0x5412, b"x"))
""",
    refused=("EPERM", "EBADF"),
    host=terminal,
    box={"close_fds": False},
    free={"namespaces": "none"},
    control_by_root=True,
)

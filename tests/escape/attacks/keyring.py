"""The keyring of the kernel, which no namespace holds."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the keyring of the kernel, which no namespace holds",
    program="""
NR = {"x86_64": 248, "aarch64": 217}[os.uname().machine]
PROCESS_KEYRING = ctypes.c_long(-2)
attempt(lambda: checked(libc.syscall(NR, b"user", b"isolate-escape", b"x", ctypes.c_ulong(1), PROCESS_KEYRING)))
""",
    refused=("EPERM",),
)

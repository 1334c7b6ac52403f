"""The same by clone(2)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the same by clone(2)",
    program="""
NR = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
def act():
    if checked(libc.syscall(NR, ctypes.c_ulong(0x10000000 | 17), 0, 0, 0, 0)) == 0:
        os._exit(0)
    os.wait()
attempt(act)
""",
    refused=("EPERM",),
)

"""A user namespace of its own, by clone(2)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a user namespace of its own, by clone(2)",
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

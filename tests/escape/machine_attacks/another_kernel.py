"""Another kernel to boot into: the control takes a loaded one out (kexec_load without segments)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="another kernel to boot into",
    program="""
SYS_KEXEC_LOAD = {"x86_64": 246}.get(os.uname().machine, 104)
attempt(lambda: checked(libc.syscall(SYS_KEXEC_LOAD, 0, 0, 0, 0)))
""",
    refused=("EPERM",),
    control_by_root=True,
)

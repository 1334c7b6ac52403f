"""A kernel module: the control gets as far as the kernel reading it (ENOEXEC)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a kernel module",
    program="""
def act():
    fd = os.memfd_create("module")
    os.write(fd, b"no module" * 100)
    libc.syscall({"x86_64": 313}.get(os.uname().machine, 273), fd, b"", 0)
    if ctypes.get_errno() != errno.ENOEXEC:
        raise OSError(ctypes.get_errno(), "")
attempt(act)
""",
    refused=("EPERM",),
    control_by_root=True,
)

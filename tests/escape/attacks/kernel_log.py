"""A line in the kernel's log (opened, not written)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a line in the kernel's log (opened, not written)",
    program="""
def act():
    fd = os.open("/dev/kmsg", os.O_WRONLY)
    if os.fstat(fd).st_rdev == os.stat("/dev/null").st_rdev:
        raise OSError(errno.ENXIO, "")
attempt(act)
""",
    refused=("ENXIO", "EACCES", "EPERM"),
    control_by_root=True,
)

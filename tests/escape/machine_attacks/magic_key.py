"""The magic key (sysrq-trigger), pressed: h prints a help text to the kernel's log."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the magic key (sysrq-trigger), pressed",
    program="""
def act():
    fd = os.open("/proc/sysrq-trigger", os.O_WRONLY)
    os.write(fd, b"h")
attempt(act)
""",
    refused=("EROFS", "EACCES"),
    control_by_root=True,
)

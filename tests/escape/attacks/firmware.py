"""What the firmware told the kernel."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="what the firmware told the kernel",
    program="""
def act():
    if not os.listdir("/sys/firmware"):
        raise OSError(errno.ENOENT, "")
attempt(act)
""",
    refused=("ENOENT",),
)

"""A line in the kernel's log (opened, not written)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a line in the kernel's log (opened, not written)",
    program="""
attempt(lambda: os.close(os.open("/dev/kmsg", os.O_WRONLY)))
""",
    refused=("ENOENT",),
    control_by_root=True,
)

"""The mode of a device of everybody's (set to what it is)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the mode of a device of everybody's (set to what it is)",
    program="""
attempt(lambda: os.chmod("/dev/null", os.stat("/dev/null").st_mode & 0o7777))
""",
    refused=("EROFS",),
    control_by_root=True,
)

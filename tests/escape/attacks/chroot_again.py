"""A second chroot below, then .. (root escapes a chroot so)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a second chroot below, then .. (root escapes a chroot so)",
    program="""
def act():
    here = os.open("/", os.O_RDONLY)
    os.chroot("/tmp")
    os.fchdir(here)
    os.chroot(".")
attempt(act)
""",
    refused=("EPERM",),
    control_by_root=True,
)

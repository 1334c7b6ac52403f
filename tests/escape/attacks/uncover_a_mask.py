"""What is mounted over a directory, taken off."""

from tests.escape.attack import Attack
from tests.escape.victims import PRIVATE_TMP

ATTACK = Attack(
    what="what is mounted over a directory, taken off",
    program="""attempt(lambda: checked(libc.umount2(b"/tmp", 2)))""",
    refused=("EPERM",),
    free={"namespaces": "mnt", "fs": PRIVATE_TMP},
    control_by_root=True,
)

"""The read-only root, remounted."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the read-only root, remounted",
    program="""
MS_REMOUNT_BIND = 32 | 4096
attempt(lambda: checked(libc.mount(None, b"/", None, MS_REMOUNT_BIND, None)))
""",
    refused=("EPERM",),
    free={"namespaces": "mnt", "fs": "readonly"},
    control_by_root=True,
)

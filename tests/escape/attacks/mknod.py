"""A device node of its own."""

from tests.escape.attack import Attack
from tests.escape.victims import PRIVATE_TMP

ATTACK = Attack(
    what="a device node of its own",
    program="""
attempt(lambda: os.mknod("/tmp/isolate-escape-node", 0o600 | 0o020000, os.makedev(1, 3)))
if os.path.exists("/tmp/isolate-escape-node"): os.unlink("/tmp/isolate-escape-node")
""",
    refused=("EPERM",),
    free={"namespaces": "mnt", "fs": PRIVATE_TMP},
    control_by_root=True,
)

"""A device of the machine."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a device of the machine",
    program="""
NAMES = ("mem", "loop-control", "fuse", "kvm", "vda", "sda", "net/tun", "kmsg")
attempt(lambda: os.stat(next((f"/dev/{name}" for name in NAMES if os.path.exists(f"/dev/{name}")), "/dev/none")))
""",
    refused=("ENOENT",),
)

"""A raw disk, written past every file system on it. The guest's scratch disk is open to everyone."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a raw disk, written",
    program="""
def act():
    fd = os.open("/dev/vm/data", os.O_WRONLY)
    os.write(fd, b"x" * 512)
attempt(act)
""",
    refused=("EACCES", "EPERM", "ENOENT", "EROFS"),
)

"""A directory descriptor left open, through /proc/self/fd."""

from tests.escape.attack import Attack, open_root

ATTACK = Attack(
    what="a directory descriptor left open, through /proc/self/fd",
    program='attempt(lambda: open(f"/proc/self/fd/{sys.argv[1]}/etc/hostname").close())',
    refused=("ENOENT",),
    host=open_root,
    free={"close_fds": False},
)

"""The same, through /proc/self/fd."""

from tests.escape.attack import Attack, open_root

ATTACK = Attack(
    what="the same, through /proc/self/fd",
    program='attempt(lambda: open(f"/proc/self/fd/{sys.argv[1]}/etc/hostname").close())',
    refused=("ENOENT",),
    host=open_root,
    free={"close_fds": False},
)

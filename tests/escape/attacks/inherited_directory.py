"""A directory descriptor left open (CVE-2024-21626)."""

from tests.escape.attack import Attack, open_root

ATTACK = Attack(
    what="a directory descriptor left open (CVE-2024-21626)",
    program='attempt(lambda: open(os.open("etc/hostname", os.O_RDONLY, dir_fd=int(sys.argv[1]))).close())',
    refused=("EBADF",),
    host=open_root,
    free={"close_fds": False},
)

"""The host's files through /proc/1/root."""

from tests.escape.attack import Attack
from tests.escape.victims import MINIMAL_ROOT

ATTACK = Attack(
    what="the host's files through /proc/1/root",
    program='pid = "self" if os.getpid() > 9 else 1\nattempt(lambda: open(f"/proc/{pid}/root/etc/hostname").close())',
    refused=("ENOENT", "EACCES"),
    box=MINIMAL_ROOT,
)

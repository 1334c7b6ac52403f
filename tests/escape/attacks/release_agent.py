"""The program that the kernel runs for an empty cgroup (opened, not written)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the program that the kernel runs for an empty cgroup (opened, not written)",
    program="""
import glob
NAMES = [*glob.glob("/sys/fs/cgroup/*/release_agent"), *glob.glob("/sys/fs/cgroup/cgroup.procs"), "/sys/fs/cgroup/none"]
attempt(lambda: os.close(os.open(NAMES[0], os.O_WRONLY)))
""",
    refused=("EROFS", "EACCES", "ENOENT"),
    control_by_root=True,
)

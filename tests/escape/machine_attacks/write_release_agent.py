"""The program that the kernel runs for an empty cgroup, written (v1)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the program that the kernel runs for an empty cgroup, written",
    program="""
import glob
def act():
    path = (glob.glob("/sys/fs/cgroup/*/release_agent") or ["/sys/fs/cgroup/none"])[0]
    for value in ("/bin/true", "\\n"):  # and none again: the mount table shows it
        with open(path, "w") as setting:
            setting.write(value)
attempt(act)
""",
    refused=("EROFS", "EACCES", "ENOENT"),
    control_by_root=True,
    needs="cgroup v1",
)

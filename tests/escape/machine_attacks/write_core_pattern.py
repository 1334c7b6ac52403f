"""The program that the kernel runs for a core dump, written."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the program that the kernel runs for a core dump, written",
    program="""
def act():
    with open("/proc/sys/kernel/core_pattern", "r+") as setting:
        before = setting.read()
        setting.write("|/bin/true")
        setting.flush()
        setting.write(before)
attempt(act)
""",
    refused=("EROFS", "EACCES"),
    control_by_root=True,
)

"""The program that the kernel runs for a core dump (opened, not written)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the program that the kernel runs for a core dump (opened, not written)",
    program='attempt(lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)))',
    refused=("EROFS", "EACCES"),
    control_by_root=True,
)

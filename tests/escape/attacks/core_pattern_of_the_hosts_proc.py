"""A setting of the kernel in the host's /proc, in a root built from nothing."""

from tests.escape.attack import Attack
from tests.escape.victims import MINIMAL_ROOT

ATTACK = Attack(
    what="a setting of the kernel in the host's /proc, in a root built from nothing",
    program='attempt(lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)))',
    refused=("EROFS", "EACCES"),
    box={**MINIMAL_ROOT, "namespaces": "-pid"},
    control_by_root=True,
)

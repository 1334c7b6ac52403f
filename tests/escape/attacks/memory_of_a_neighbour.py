"""Writing another's memory through /proc/PID/mem."""

from tests.escape.attack import Attack, sleeper

ATTACK = Attack(
    what="writing another's memory through /proc/PID/mem",
    program='attempt(lambda: os.close(os.open(f"/proc/{sys.argv[1]}/mem", os.O_RDWR)))',
    refused=("EACCES", "EPERM", "ENOENT"),
    host=sleeper,
    box={"namespaces": "-pid", "fs": "host", "landlock_scoped": True},
    needs="landlock_scoped",
)

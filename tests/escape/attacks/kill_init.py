"""The init of its own PID namespace."""

from tests.escape.attack import Attack, sleeper

ATTACK = Attack(
    what="the init of its own PID namespace",
    program="""
def act():
    victim = int(sys.argv[1]) if os.getpid() > 9 else 1
    os.kill(victim, signal.SIGKILL)
    time.sleep(0.1)
    if victim == 1: raise OSError(errno.EINVAL, "still alive")
attempt(act)
""",
    refused=("EINVAL",),
    host=sleeper,
)

"""A signal to a process outside, against a Landlock scope."""

from tests.escape.attack import Attack, sleeper

ATTACK = Attack(
    what="a signal to a process outside, against a Landlock scope",
    program="""attempt(lambda: os.kill(int(sys.argv[1]), 0))""",
    refused=("EPERM",),
    host=sleeper,
    box={"namespaces": "-pid", "landlock_scoped": True},
    needs="landlock_scoped",
)

"""The same without a PID namespace, by a Landlock scope."""

from tests.escape.attack import Attack, sleeper

ATTACK = Attack(
    what="the same without a PID namespace, by a Landlock scope",
    program="""attempt(lambda: os.kill(int(sys.argv[1]), 0))""",
    refused=("EPERM",),
    host=sleeper,
    box={"namespaces": "-pid", "landlock_scoped": True},
    needs="landlock_scoped",
)

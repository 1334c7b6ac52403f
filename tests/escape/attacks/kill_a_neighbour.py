"""A signal to a process outside, by its number."""

from tests.escape.attack import Attack, sleeper

ATTACK = Attack(
    what="a signal to a process outside, by its number",
    program="""attempt(lambda: os.kill(int(sys.argv[1]), 0))""",
    refused=("ESRCH",),
    host=sleeper,
)

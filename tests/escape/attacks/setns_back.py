"""Into the namespace of whoever started it."""

from tests.escape.attack import Attack
from tests.escape.victims import namespace

ATTACK = Attack(
    what="into the namespace of whoever started it",
    program="""attempt(lambda: checked(libc.setns(int(sys.argv[1]), 0)))""",
    refused=("EPERM",),
    host=namespace,
    box={"close_fds": False},
    control_by_root=True,
)

"""A semaphore of System V, by its key."""

from tests.escape.attack import Attack
from tests.escape.victims import sysv_semaphore

ATTACK = Attack(
    what="a semaphore of System V, by its key",
    program="""attempt(lambda: checked(libc.semget(int(sys.argv[1]), 1, 0)))""",
    refused=("ENOENT",),
    host=sysv_semaphore,
)

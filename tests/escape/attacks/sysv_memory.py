"""Shared memory of System V, by its key."""

from tests.escape.attack import Attack
from tests.escape.victims import sysv_memory

ATTACK = Attack(
    what="shared memory of System V, by its key",
    program="""attempt(lambda: checked(libc.shmget(int(sys.argv[1]), 0, 0)))""",
    refused=("ENOENT",),
    host=sysv_memory,
)

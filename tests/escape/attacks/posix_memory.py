"""Shared memory of POSIX, by its name."""

from tests.escape.attack import Attack
from tests.escape.victims import posix_memory

ATTACK = Attack(
    what="shared memory of POSIX, by its name",
    program="""attempt(lambda: os.close(os.open(sys.argv[1], os.O_RDONLY)))""",
    refused=("ENOENT",),
    host=posix_memory,
)

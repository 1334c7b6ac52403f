"""A message queue of POSIX, by its name."""

from tests.escape.attack import Attack
from tests.escape.victims import posix_queue

ATTACK = Attack(
    what="a message queue of POSIX, by its name",
    program="""attempt(lambda: checked(libc.mq_open(sys.argv[1].encode(), os.O_RDONLY)))""",
    refused=("ENOENT",),
    host=posix_queue,
)

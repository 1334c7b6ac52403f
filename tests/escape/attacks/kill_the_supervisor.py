"""A signal to the process that made the sandbox."""

from tests.escape.attack import Attack
from tests.escape.victims import supervisor

ATTACK = Attack(
    what="a signal to the process that made the sandbox",
    program="""attempt(lambda: os.kill(int(sys.argv[1]), 0))""",
    refused=("ESRCH",),
    host=supervisor,
)

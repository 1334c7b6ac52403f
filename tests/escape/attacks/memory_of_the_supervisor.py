"""The memory of the process that made the sandbox."""

from tests.escape.attack import Attack
from tests.escape.victims import supervisor

ATTACK = Attack(
    what="the memory of the process that made the sandbox",
    program="""attempt(lambda: os.close(os.open(f"/proc/{sys.argv[1]}/mem", os.O_RDWR)))""",
    refused=("ENOENT",),
    host=supervisor,
)

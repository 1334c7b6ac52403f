""".. out of the new root."""

from tests.escape.attack import Attack
from tests.escape.victims import MINIMAL_ROOT

ATTACK = Attack(
    what=".. out of the new root",
    program='attempt(lambda: open("/" + "../" * 40 + sys.argv[1]).close())',
    refused=("ENOENT",),
    host=lambda _stack: ["etc/hostname"],
    box=MINIMAL_ROOT,
)

"""A file on the read-only root."""

from tests.escape.attack import Attack
from tests.escape.victims import writable_file

ATTACK = Attack(
    what="a file on the read-only root",
    program="""
path = sys.argv[1]
attempt(lambda: os.close(os.open(path, os.O_WRONLY)))
""",
    refused=("EROFS",),
    host=writable_file,
)

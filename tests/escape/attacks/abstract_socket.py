"""A socket without a file, by its name."""

from tests.escape.attack import Attack
from tests.escape.victims import abstract_socket

ATTACK = Attack(
    what="a socket without a file, by its name",
    program='attempt(lambda: socket.socket(socket.AF_UNIX).connect("\\0" + sys.argv[1]))',
    refused=("ECONNREFUSED",),
    host=abstract_socket,
)

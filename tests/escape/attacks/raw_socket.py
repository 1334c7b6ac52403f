"""Raw packets."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="raw packets",
    program="""attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())""",
    refused=("EPERM",),
    control_by_root=True,
)

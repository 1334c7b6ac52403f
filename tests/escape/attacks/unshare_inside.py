"""A user namespace of its own, with all privileges inside."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a user namespace of its own, with all privileges inside",
    program="""attempt(lambda: checked(libc.unshare(0x10000000)))""",
    refused=("EPERM",),
)

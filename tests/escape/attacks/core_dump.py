"""A core dump where none is allowed."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a core dump where none is allowed",
    program="""
import resource
def act():
    try: resource.setrlimit(resource.RLIMIT_CORE, (4096, 4096))
    except ValueError: raise OSError(errno.EPERM, "") from None
attempt(act)
""",
    refused=("EPERM",),
    box={"rlimits": {"CORE": 0}},
)

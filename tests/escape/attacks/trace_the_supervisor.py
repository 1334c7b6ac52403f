"""Ptrace of the process that made the sandbox, in a sandbox that sees it."""

from tests.escape.attack import Attack
from tests.escape.victims import supervisor

ATTACK = Attack(
    what="ptrace of the process that made the sandbox, in view",
    program="""attempt(lambda: checked(libc.ptrace(0x4206, int(sys.argv[1]), 0, 0)))  # PTRACE_SEIZE: it goes on""",
    refused=("EPERM",),
    host=supervisor,
    box={"namespaces": "-pid"},
)

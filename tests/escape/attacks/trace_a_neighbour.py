"""Ptrace of a process outside."""

from tests.escape.attack import Attack, sleeper

ATTACK = Attack(
    what="ptrace of a process outside",
    program="""attempt(lambda: checked(libc.ptrace(16, int(sys.argv[1]), 0, 0)))""",
    refused=("EPERM", "ESRCH"),
    host=sleeper,
    box={"namespaces": "-pid"},
)

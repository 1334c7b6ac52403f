"""A descriptor of the init's, which holds a pidfd of the supervisor (pidfd_getfd)."""

from tests.escape.attack import Attack, sleeper

ATTACK = Attack(
    what="a descriptor of the init's, which holds a pidfd of the supervisor",
    program="""
victim = int(sys.argv[1]) if os.getpid() > 9 else 1
pidfd = checked(libc.syscall(434, victim, 0))
attempt(lambda: checked(libc.syscall(438, pidfd, 1, 0)))
""",
    refused=("EPERM",),
    host=sleeper,
)

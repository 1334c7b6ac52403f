"""System calls through a ring that no filter sees (io_uring)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="system calls through a ring that no filter sees (io_uring)",
    program="""
parameters = ctypes.create_string_buffer(120)
attempt(lambda: os.close(checked(libc.syscall(425, 1, parameters))))
""",
    refused=("EPERM", "ENOSYS"),
)

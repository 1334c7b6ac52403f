"""The mount calls that came after mount(2): fsopen."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a file system by the newer mount calls (fsopen)",
    program="""attempt(lambda: checked(libc.syscall(430, b"tmpfs", 0)))""",
    refused=("EPERM", "ENOSYS"),
    free={"namespaces": "mnt"},
    control_by_root=True,
)

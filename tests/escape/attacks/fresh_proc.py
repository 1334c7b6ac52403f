"""A /proc of its own over the masked one."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a /proc of its own over the masked one",
    program="""attempt(lambda: checked(libc.mount(b"proc", b"/proc", b"proc", 0, None)))""",
    refused=("EPERM",),
    free={"namespaces": "mnt"},
    control_by_root=True,
)

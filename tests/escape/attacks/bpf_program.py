"""A map of eBPF's, by which kernel memory has been reached more than once."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="an eBPF map",
    program="""
BPF_MAP_CREATE, SYS_BPF = 0, {"x86_64": 321}.get(os.uname().machine, 280)
attributes = (ctypes.c_uint * 32)(2, 4, 4, 1)  # an array of one word
attempt(lambda: os.close(checked(libc.syscall(SYS_BPF, BPF_MAP_CREATE, attributes, ctypes.sizeof(attributes)))))
""",
    refused=("EPERM", "ENOSYS"),
    control_by_root=True,
)

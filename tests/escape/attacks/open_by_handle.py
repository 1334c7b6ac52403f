"""A file by its handle, past every mount that hides it (CAP_DAC_READ_SEARCH)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a file by its handle, past every mount that hides it",
    program="""
class Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128))
handle, mount = Handle(bytes=128), ctypes.c_int()
checked(libc.name_to_handle_at(-100, b"/usr", ctypes.byref(handle), ctypes.byref(mount), 0))
root = os.open("/", os.O_RDONLY)
attempt(lambda: checked(libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)))
""",
    refused=("EPERM",),
    control_by_root=True,
)

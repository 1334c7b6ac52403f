"""A file by its handle, past every mount that hides it (CAP_DAC_READ_SEARCH)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="a file by its handle, past every mount that hides it",
    program="""
class Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128))
handle, mount = Handle(bytes=128), ctypes.c_int()
named = lambda path: libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount), 0) == 0
known = next(path for path in (b"/usr", b"/dev") if named(path))  # a guest's root, over 9p, has no handles
there = os.open(known, os.O_RDONLY)
attempt(lambda: checked(libc.open_by_handle_at(there, ctypes.byref(handle), os.O_RDONLY)))
""",
    refused=("EPERM",),
    control_by_root=True,
)

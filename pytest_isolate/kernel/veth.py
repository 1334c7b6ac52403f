"""One rtnetlink message by hand: a veth whose both ends have the index asked for. pyroute2 can say only that of one end.

Owns: RTM_NEWLINK of kind veth. Refuses: everything else about interfaces (interfaces.py).
Source: rtnetlink(7), linux/if_link.h, linux/veth.h; drivers/net/veth.c, veth_newlink.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

_RTM_NEWLINK = 16
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_IFNAME, _MTU, _LINKINFO, _NET_NS_FD = 3, 4, 18, 28
_INFO_KIND, _INFO_DATA, _INFO_PEER = 1, 2, 1


def add_pair(name: str, index: int, peer_name: str, peer_index: int, *, peer_netns_fd: int = -1, mtu: int) -> None:
    """Make a veth, down, with one end in this thread's network namespace; index 0: the kernel chooses one.

    Raises:
        OSError: EEXIST where a name or an index is taken, and what else the kernel answers; nothing is made.
    """
    peer = _interface(peer_index) + _attribute(_IFNAME, peer_name.encode() + b"\0") + _attribute(_MTU, _u32(mtu))
    if peer_netns_fd >= 0:
        peer += _attribute(_NET_NS_FD, _u32(peer_netns_fd))
    kind = _attribute(_INFO_KIND, b"veth") + _attribute(_INFO_DATA, _attribute(_INFO_PEER, peer))
    body = _interface(index) + _attribute(_IFNAME, name.encode() + b"\0") + _attribute(_MTU, _u32(mtu))
    _request(_RTM_NEWLINK, _REQUEST | _ACK | _CREATE | _EXCL, body + _attribute(_LINKINFO, kind), name)


def _interface(index: int) -> bytes:
    """struct ifinfomsg."""
    return struct.pack("=BxHiII", 0, 0, index, 0, 0)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _request(kind: int, flags: int, body: bytes, what: str) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.bind((0, 0))
        kernel.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answer = kernel.recv(65536)
    _, answered, _, _, _, code = struct.unpack_from("=IHHIIi", answer)
    if answered != _NLMSG_ERROR:
        raise OSError(errno.EPROTO, f"{what}: the kernel answered a message of type {answered}")
    if code:
        raise OSError(-code, f"{what}: {os.strerror(-code)}")

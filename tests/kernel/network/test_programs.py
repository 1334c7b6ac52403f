"""Users' own C programs beside the policy."""

from __future__ import annotations

import socket
import struct

import pytest

from pytest_isolate.errors import BackendUnavailable, PolicyError, SetupError
from pytest_isolate.kernel import bcc
from pytest_isolate.network import NetworkPolicy
from pytest_isolate.network.programs import UserProgram, array_map, hash_map
from tests.kernel.network.conftest import attempt, udp

V4 = "203.0.113.7"
SIZES = """
int sizes(struct __sk_buff *skb)
{
	__u32 key = skb->len;
	__u64 one = 1, *seen = map_get(lengths, &key);

	if (seen)
		np_add(*seen, 1);
	else
		map_put(lengths, &key, &one);
	return 1;
}
"""


@pytest.fixture(autouse=True)
def _bcc(require):
    try:
        bcc.load({}).close()
    except BackendUnavailable as error:
        require("bcc", False, str(error))


def test_a_users_program_counts_what_it_likes_and_python_reads_it(box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()

    def work():
        for length, times in ((10, 3), (20, 2)):
            udp(address, b"x" * length, times=times)

    with (
        box.attach(NetworkPolicy().allow(V4)),
        UserProgram(box.fd, SIZES, "egress", "sizes", {"lengths": hash_map(4, 8)}) as mine,
    ):
        box.run(work)
        found = {struct.unpack("=I", k)[0]: struct.unpack("=Q", v)[0] for k, v in mine.maps["lengths"].items()}
    assert found == {38: 3, 48: 2}


def test_a_users_program_may_deny_what_the_policy_allows(box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()
    text = "int odd(struct __sk_buff *skb) { __u32 zero = 0, *on = map_get(on, &zero); return !(on && *on); }"
    with (
        box.attach(NetworkPolicy().allow(V4)),
        UserProgram(box.fd, text, "egress", "odd", {"on": array_map(4, 1)}) as mine,
    ):
        assert box.run(lambda: attempt(lambda: udp(address))[0]) == "ok"
        mine.maps["on"].update(bytes(4), struct.pack("=I", 1))
        assert box.run(lambda: attempt(lambda: udp(address))[0]) == "EPERM"


@pytest.mark.parametrize(
    ("text", "hook", "error", "words"),
    [
        ("int f(struct __sk_buff *s) { return x; }", "egress", PolicyError, "undeclared"),
        ("int f(struct __sk_buff *s) { return *(int *)0; }", "egress", SetupError, "bpf-load"),
        ("int g(struct __sk_buff *s) { return 1; }", "egress", PolicyError, "no function f"),
        ("int f(struct __sk_buff *s) { return 1; }", "egres", PolicyError, "Did you mean 'egress'"),
    ],
)
def test_what_is_wrong_with_a_program_is_said(box, text, hook, error, words):
    with pytest.raises(error, match=words):
        UserProgram(box.fd, text, hook, "f", {})

"""Users' own C programs beside the policy."""

from __future__ import annotations

import socket
import struct

import pytest

from pytest_isolate.errors import PolicyError, SetupError
from pytest_isolate.kernel import landlock
from pytest_isolate.network import NetworkPolicy
from pytest_isolate.network.programs import UserProgram, decoded, encoded
from tests.conftest import require_front_end
from tests.kernel.network.conftest import FRONT_ENDS, attempt, udp

V4 = "203.0.113.7"
SIZES = """
struct seen { u64 packets; u32 marks[2]; u8 last; };
BPF_HASH(lengths, u32, u64);
BPF_PERCPU_ARRAY(per_cpu, u64, 1);
BPF_HASH(known, u16, struct seen);
int sizes(struct __sk_buff *skb)
{
	u32 key = skb->len, zero = 0;
	u16 one = 1;
	u64 *mine = per_cpu.lookup(&zero);
	struct seen it = {.packets = key, .marks = {7, 8}, .last = 9};

	lengths.increment(key);
	if (mine)
		*mine += 1;
	known.update(&one, &it);
	return 1;
}
"""


@pytest.fixture(autouse=True)
def _bcc(require):
    require("bcc", "bcc" in FRONT_ENDS, "ISOLATE_FRONT_ENDS does not name it")
    require_front_end("bcc")


def test_a_users_program_counts_what_it_likes_and_python_reads_it(box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()

    def work():
        for length, times in ((10, 3), (20, 2)):
            udp(address, b"x" * length, times=times)

    with box.attach(NetworkPolicy().allow(V4)), UserProgram(box.fd, SIZES, "egress") as mine:
        box.run(work)
        assert dict(mine.maps["lengths"].items()) == {38: 3, 48: 2}
        assert sum(mine.maps["per_cpu"].get(0)) == 5
        ((_, of_cpus),) = mine.maps["per_cpu"].items()
        assert sum(of_cpus) == 5
        assert dict(mine.maps["known"].items()) == {1: {"packets": 48, "marks": [7, 8], "last": 9}}
        mine.maps["lengths"].set(38, 1 << 40)
        assert (mine.maps["lengths"].get(38), mine.maps["lengths"].get(39)) == (1 << 40, None)
        assert [mine.maps["lengths"].delete(38) for _ in range(2)] == [True, False]
        mine.maps["per_cpu"].set(0, 4)
        assert set(mine.maps["per_cpu"].get(0)) == {4}


def test_a_users_program_may_deny_what_the_policy_allows(box, listen):
    address = listen(kind=socket.SOCK_DGRAM).getsockname()
    text = (
        "BPF_ARRAY(on, u32, 1); int odd(struct __sk_buff *s) { int z = 0; u32 *v = on.lookup(&z); return !(v && *v); }"
    )
    with box.attach(NetworkPolicy().allow(V4)), UserProgram(box.fd, text, "egress") as mine:
        assert box.run(lambda: attempt(lambda: udp(address))[0]) == "ok"
        mine.maps["on"].set(0, 1)
        assert box.run(lambda: attempt(lambda: udp(address))[0]) == "EPERM"


PASS = "int f(struct __sk_buff *s) { return 1; }"


@pytest.mark.parametrize(
    ("text", "hook", "function", "error", "words"),
    [
        ("int f(struct __sk_buff *s) { return x; }", "egress", "", PolicyError, "undeclared"),
        ("int f(struct __sk_buff *s) { return *(int *)0; }", "egress", "", SetupError, "bpf-load"),
        (PASS, "egress", "g", PolicyError, "no function g"),
        (PASS + " int g(struct __sk_buff *s) { return 1; }", "egress", "", PolicyError, r"2 functions \(f, g\): name"),
        ("", "egress", "f", PolicyError, "no function f"),
        (PASS, "egres", "", PolicyError, "Did you mean 'egress'"),
        ("BPF_RINGBUF_OUTPUT(r, 1);" + PASS, "egress", "", PolicyError, "map r: it is of type 27"),
        (
            "int f(struct __sk_buff *s) { int k = 0; return !bpf_map_lookup_elem_((void *)bpf_pseudo_fd(1, 0), &k); }".replace(
                "elem_", "elem"
            ),
            "egress",
            "",
            PolicyError,
            "names descriptor 0, no map of its own",
        ),
    ],
)
def test_what_is_wrong_with_a_program_is_said(box, text, hook, function, error, words):
    with pytest.raises(error, match=words):
        UserProgram(box.fd, text, hook, function)


def test_a_text_includes_headers_and_no_other_file(box, scratch, require):
    """The compiler runs as root: without a fence, an #include would tell a test what is in any file."""
    require("landlock", landlock.abi() > 0, "no Landlock")
    (scratch / "secret.h").write_text("#error told to everybody\n")
    with pytest.raises(PolicyError) as refused:
        UserProgram(box.fd, f'#include "{scratch}/secret.h"\n{PASS}', "egress")
    assert "told to everybody" not in str(refused.value)
    assert "Permission denied" in str(refused.value) or "not found" in str(refused.value)
    UserProgram(box.fd, f"#include <uapi/linux/ip.h>\n{PASS}", "egress").close()


def test_keys_and_values_go_both_ways():
    of_struct = {"struct": [["a", 0, 4, {"int": True}], ["b", 8, 4, {"array": [2, 2, {"int": False}]}]]}
    value = {"a": -1, "b": [1, 65535]}
    packed = encoded(of_struct, value, 16)
    assert packed == struct.pack("=i4xHH4x", -1, 1, 65535)
    assert decoded(of_struct, packed) == value
    assert decoded(None, b"ab") == encoded(None, b"ab", 2) == b"ab"
    for wrong in (256, -1, "1", b"12", None):
        with pytest.raises(PolicyError):
            encoded({"int": False}, wrong, 1)

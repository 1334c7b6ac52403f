"""Named policies, and how a policy is varied by the words of an option, a marker or a call.

Owns: the built-in profiles, the grammar of user-made ones, and ``vary``: one table from word to policy field.
Refuses: to read configuration files or to know where a word was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pytest_isolate import ranges, units
from pytest_isolate.errors import IsolateError, PolicyError
from pytest_isolate.hardening import Landlock, SeccompProfile
from pytest_isolate.policy import (
    NETWORK_MODES,
    RLIMIT_UNITS,
    UNLIMITED,
    Filesystem,
    Hardening,
    Namespace,
    Network,
    Policy,
    Tmpfs,
    parse_namespaces,
    unknown,
)

#: No PID namespace: it changed 28 outcomes of psutil's suite, whose classes look at processes made before the fork.
_STANDARD_NAMESPACES = frozenset({Namespace.UTS, Namespace.IPC, Namespace.MOUNT})

#: A session of its own and nothing else: what any process may do anywhere.
MINIMAL = Policy(filesystem=Filesystem(proc=False))
#: Everything that changes no outcome of the parity suites: see docs/explanation/profiles.md.
STANDARD = Policy(namespaces=_STANDARD_NAMESPACES, filesystem=Filesystem(proc=False))
#: Processes of its own, loopback only, host read-only, private /tmp and /dev/shm, no capabilities, nothing inherited.
STRICT = Policy(
    namespaces=_STANDARD_NAMESPACES | {Namespace.PID, Namespace.NET},
    filesystem=Filesystem(root="readonly", tmpfs=(Tmpfs(target="/tmp"), Tmpfs(target="/dev/shm"))),
    network=Network(mode="loopback"),
    hardening=Hardening(capabilities=frozenset(), no_new_privs=True, close_fds=True),
)
PROFILES: Mapping[str, Policy] = MappingProxyType({"minimal": MINIMAL, "standard": STANDARD, "strict": STRICT})

_OWN_NETWORK = ("none", "loopback", "private")


def _limits(policy: Policy, **fields: Any) -> Policy:
    return replace(policy, limits=replace(policy.limits, **fields))


def _hardening(policy: Policy, **fields: Any) -> Policy:
    return replace(policy, hardening=replace(policy.hardening, **fields))


def _namespaces(policy: Policy, value: Any) -> Policy:
    """``pid,uts`` replaces the set; ``+net`` and ``-ipc`` add to it and take from it."""
    words = _names("namespaces", value)
    namespaces = policy.namespaces
    if not any(word[:1] in "+-" for word in words):
        return _with_proc(policy, parse_namespaces(words))
    for word in words:
        changed = parse_namespaces([word.lstrip("+-")])
        namespaces = namespaces - changed if word.startswith("-") else namespaces | changed
    return _with_proc(policy, namespaces)


def _with_proc(policy: Policy, namespaces: frozenset[Namespace]) -> Policy:
    """Who asks for processes of his own is shown them: a fresh /proc, where there is a mount namespace to show it in."""
    asked = {Namespace.PID, Namespace.MOUNT} <= namespaces and Namespace.PID not in policy.namespaces
    filesystem = replace(policy.filesystem, proc=True) if asked else policy.filesystem
    return replace(policy, namespaces=namespaces, filesystem=filesystem)


def _network(policy: Policy, value: str) -> Policy:
    if value not in NETWORK_MODES:
        raise unknown("net", str(value), NETWORK_MODES)
    own = {Namespace.NET} if value in _OWN_NETWORK else set()
    network = replace(policy.network, mode=value)
    return replace(policy, network=network, namespaces=policy.namespaces - {Namespace.NET} | own)


def _rules(policy: Policy, verb: str, value: Any) -> Policy:
    """A list, or one text with commas; rules make the mode ``policy`` where the host's network is seen."""
    texts = _words(value) if isinstance(value, str) else list(value)
    if any(not isinstance(text, str) for text in texts):
        raise PolicyError(f"net_{verb}", f"{value!r} is not a list of texts", 'write ["203.0.113.7:443/tcp"]')
    return _ruled(policy, **{verb: tuple(texts)})


def _ruled(policy: Policy, **fields: Any) -> Policy:
    network = replace(policy.network, **fields)
    if network.ruled and network.mode in ("host", "shared"):
        network = replace(network, mode="policy")
    return replace(policy, network=network)


def _filesystem(policy: Policy, value: Any) -> Policy:
    if isinstance(value, Filesystem):
        filesystem = value
    elif value in ("host", "readonly", "minimal"):
        filesystem = replace(policy.filesystem, root=value)
    else:
        raise unknown("fs", str(value), ("host", "readonly", "minimal"))
    extra = {Namespace.MOUNT} if filesystem.needs_mounts else set()
    return replace(policy, filesystem=filesystem, namespaces=policy.namespaces | extra)


def _capabilities(policy: Policy, value: Any) -> Policy:
    if value == "keep":
        return _hardening(policy, capabilities=None)
    names = [] if value == "drop" else _names("capabilities", value)
    full = frozenset(name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}" for name in names)
    return _hardening(policy, capabilities=full)


def _words(value: Any) -> list[str]:
    """A list, or one text with commas or spaces."""
    return value.replace(",", " ").split() if isinstance(value, str) else [str(word) for word in value]


def _names(what: str, value: Any) -> list[str]:
    """A list of names, of which none is a number or nothing, or one text with commas or spaces."""
    if isinstance(value, str):
        return _words(value)
    names = [] if isinstance(value, Mapping) else [getattr(name, "value", name) for name in value]
    if isinstance(value, Mapping) or not all(isinstance(name, str) for name in names):
        raise PolicyError(what, f"{units.shown(value)} is no list of names", "write names, in a list or with commas")
    return names


def _seccomp(policy: Policy, value: Any) -> Policy:
    if not isinstance(value, str | SeccompProfile):
        raise PolicyError("seccomp", f"{units.shown(value)} is no profile", "write none, default or a SeccompProfile")
    return _hardening(policy, seccomp=value)


def _seccomp_refuse(policy: Policy, value: Any) -> Policy:
    """``ptrace,chroot=ENOSYS``: refused besides what the profile refuses."""
    before = policy.hardening.seccomp
    if isinstance(before, str):
        before = SeccompProfile(name=before, base=before)  # type: ignore[arg-type]
    pairs = [word.partition("=") for word in _names("seccomp_refuse", value)]
    refuse = {name: answer or "EPERM" for name, _, answer in pairs}
    name = f"{before.name}, and {', '.join(refuse)} refused"
    return _hardening(policy, seccomp=replace(before, name=name, refuse={**before.refuse, **refuse}))


def _landlock(policy: Policy, value: Any) -> Policy:
    if not isinstance(value, Landlock):
        value = Landlock() if truth(value, what="landlock") else None
    return _hardening(policy, landlock=value)


def _landlocked(policy: Policy, **fields: Any) -> Policy:
    return _hardening(policy, landlock=replace(policy.hardening.landlock or Landlock(), **fields))


def _scoped(policy: Policy, value: Any) -> Policy:
    """Without Landlock, no scope is asked for already: to say so asks for nothing else of it."""
    scoped = truth(value, what="landlock_scoped")
    return _landlocked(policy, scoped=scoped) if scoped or policy.hardening.landlock else policy


def _ports(value: Any, *, what: str) -> tuple[int, ...]:
    words = [] if value in ("none", None) else _words([value] if isinstance(value, int) else value)
    if not all(word.isdigit() for word in words):
        raise PolicyError(what, f"{value!r} are no ports", "write 80,443 or none")
    return tuple(int(word) for word in words)


def _umask(value: Any) -> int:
    """``077`` is octal; so is the number 77 of a text, and a number is what it is."""
    try:
        return value if isinstance(value, int) else int(str(value), 8)
    except ValueError:
        raise PolicyError("umask", f"{value!r} is not octal", "write 077") from None


#: At the hard limit the kernel sends SIGKILL, which tells nothing; so one value means SIGXCPU at it, SIGKILL this much later.
_WARNED_FIRST = {"CPU": 1, "RTTIME": 1_000_000}


def _hard(name: str, soft: int) -> int:
    most = ranges.of_rlimit(name, RLIMIT_UNITS[name]).most
    return soft if soft == UNLIMITED else min(soft + _WARNED_FIRST.get(name, 0), most)


def _rlimits(policy: Policy, value: Mapping[str, Any]) -> Policy:
    """``{"NOFILE": 64}`` sets soft and hard; ``{"NOFILE": (64, 128)}`` each; "64M" where the unit is bytes."""
    if not isinstance(value, Mapping):
        raise PolicyError("rlimits", f"{value!r} is not a mapping", 'write {"NOFILE": 64}')
    found = dict(policy.limits.rlimits)
    for name, pair in value.items():
        key = str(name).upper().removeprefix("RLIMIT_")
        if key not in RLIMIT_UNITS:
            raise unknown("rlimit", str(name), RLIMIT_UNITS)
        both = pair if isinstance(pair, tuple) else (pair,)
        if len(both) not in (1, 2):
            raise PolicyError(f"rlimit {key}", f"{pair!r} is not one value or (soft, hard)", "write one or two values")
        soft, *rest = (_rlimit_value(key, part) for part in both)
        found[key] = (soft, rest[0] if rest else _hard(key, soft))
    return _limits(policy, rlimits=found)


def _hugetlb(policy: Policy, value: Mapping[str, Any]) -> Policy:
    """``{"2MB": "64M"}``: bytes in huge pages of a size."""
    if not isinstance(value, Mapping):
        raise PolicyError("hugetlb", f"{value!r} is not a mapping", 'write {"2MB": "64M"}')
    sizes = {str(size): units.size_bytes(most, what=f"hugetlb {size}") for size, most in value.items()}
    return _limits(policy, hugetlb_bytes=sizes)


def _rlimit_value(name: str, value: Any) -> int:
    if value in (None, "unlimited", "infinity"):
        return UNLIMITED
    admissible = ranges.of_rlimit(name, RLIMIT_UNITS[name])
    if RLIMIT_UNITS[name] == "bytes" and isinstance(value, str) and not value.strip().isdecimal():
        return units.size_bytes(value, what=admissible.what)
    return units.count(value, what=admissible.what, write=admissible.write)


def _whole(field: str, value: Any) -> int:
    admissible = ranges.LIMITS[field]
    return units.count(value, what=admissible.what, write=admissible.write)


def _is_zero(value: Any) -> bool:
    """What its grammar does not have and the limit does."""
    return value in (0, "0") and value is not False


def _cores(value: Any) -> float:
    try:
        cores = float(value)
    except (TypeError, ValueError, OverflowError):
        cores = None
    if cores is None or isinstance(value, bool | bytes):
        raise PolicyError("cpu", f"{units.shown(value)} is not a number of cores", ranges.LIMITS["cpu_cores"].write)
    return cores


def truth(value: Any, *, what: str = "switch") -> bool:
    """``yes/no``, ``on/off``, ``true/false``, ``1/0`` or a bool."""
    if isinstance(value, bool):
        return value
    match str(value).strip().lower():
        case "1" | "yes" | "on" | "true":
            return True
        case "0" | "no" | "off" | "false" | "":
            return False
    raise PolicyError(what, f"{value!r} is neither yes nor no", "write yes or no")


#: One row per word: what it does to a policy. The words of markers, ini profiles, ``sandbox.run`` and the CLI.
WORDS: Mapping[str, Callable[[Policy, Any], Policy]] = MappingProxyType(
    {
        "namespaces": _namespaces,
        "net": _network,
        "net_allow": lambda p, v: _rules(p, "allow", v),
        "net_deny": lambda p, v: _rules(p, "deny", v),
        "net_log": lambda p, v: _rules(p, "log", v),
        "net_default": lambda p, v: _ruled(p, default=str(v)),
        "net_errno": lambda p, v: _ruled(p, errno=v),
        "fs": _filesystem,
        "memory": lambda p, v: _limits(p, memory_bytes=units.size_bytes(v, what="memory")),
        "memory_high": lambda p, v: _limits(p, memory_high_bytes=units.size_bytes(v, what="memory_high")),
        "memory_fallback": lambda p, v: _limits(p, memory_fallback=v),
        "swap": lambda p, v: _limits(p, swap_bytes=0 if _is_zero(v) else units.size_bytes(v, what="swap")),
        "pids": lambda p, v: _limits(p, pids=_whole("pids", v)),
        "cpu": lambda p, v: _limits(p, cpu_cores=_cores(v)),
        "cpu_weight": lambda p, v: _limits(p, cpu_weight=_whole("cpu_weight", v)),
        "cpuset": lambda p, v: _limits(p, cpuset=str(v)),
        "io": lambda p, v: _limits(p, io=v),
        "hugetlb": _hugetlb,
        "cpu_time": lambda p, v: _limits(p, cpu_time_s=units.duration_s(v, what="cpu_time")),
        "rlimits": _rlimits,
        "timeout": lambda p, v: replace(p, timeout_s=units.duration_s(v, what="timeout")),
        "grace": lambda p, v: replace(p, grace_s=0.0 if _is_zero(v) else units.duration_s(v, what="grace")),
        "hostname": lambda p, v: replace(p, hostname=str(v), namespaces=p.namespaces | {Namespace.UTS}),
        "capabilities": _capabilities,
        "no_new_privs": lambda p, v: _hardening(p, no_new_privs=truth(v, what="no_new_privs")),
        "securebits": lambda p, v: _hardening(p, securebits=truth(v, what="securebits")),
        "seccomp": _seccomp,
        "seccomp_refuse": _seccomp_refuse,
        "landlock": _landlock,
        "landlock_read": lambda p, v: _landlocked(p, read=tuple(_words(v))),
        "landlock_write": lambda p, v: _landlocked(p, write=tuple(_words(v))),
        "landlock_connect": lambda p, v: _landlocked(p, connect_tcp=_ports(v, what="landlock_connect")),
        "landlock_bind": lambda p, v: _landlocked(p, bind_tcp=_ports(v, what="landlock_bind")),
        "landlock_scoped": _scoped,
        "umask": lambda p, v: _hardening(p, umask=_umask(v)),
        "environment": lambda p, v: _hardening(p, environment=str(v)),
        "close_fds": lambda p, v: _hardening(p, close_fds=truth(v, what="close_fds")),
        "session": lambda p, v: replace(p, session=truth(v, what="session")),
    }
)


def vary(policy: Policy, **words: Any) -> Policy:
    """Return ``policy`` changed by ``words`` (see WORDS); a word whose value is None changes nothing.

    Raises:
        PolicyError: an unknown word (the nearest one is suggested) or a value without meaning.
    """
    for word, value in words.items():
        if word not in WORDS:
            raise unknown("option", word, WORDS)
        if value is not None:
            policy = _varied(policy, word, value)
    return policy


def _varied(policy: Policy, word: str, value: Any) -> Policy:
    """What no word can read, a number for a list or a text that cannot be encoded, is refused by its name."""
    try:
        return WORDS[word](policy, value)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, IsolateError):
            raise
        what = f"{units.shown(value)} is no value of it ({type(error).__name__}: {error})"
        raise PolicyError(word, what, "see pytest-isolate's reference of options") from error


def parse_profiles(lines: Iterable[str]) -> dict[str, Policy]:
    """The user's own profiles: ``ci: standard, net=loopback, memory=1G``; a later line may build on an earlier one.

    Raises:
        PolicyError: a line without a name, an unknown base or word, or a name of a built-in profile.
    """
    profiles = dict(PROFILES)
    for line in filter(None, map(str.strip, lines)):
        name, colon, rest = line.partition(":")
        name = name.strip()
        if not colon or not name:
            raise PolicyError("profile", f"{line!r} has no name", "write NAME: BASE, WORD=VALUE, ...")
        if name in PROFILES:
            raise PolicyError(f"profile {name!r}", "a built-in profile cannot be changed", "choose another name")
        if name in profiles:
            raise PolicyError(f"profile {name!r}", "there are two of that name", "choose another name")
        base, *settings = (part.strip() for part in rest.split(","))
        if base not in profiles:
            raise unknown(f"base profile of {name!r}", base, profiles)
        pairs = [setting.partition("=") for setting in settings]
        if any(not equals for _, equals, _ in pairs):
            why = f"{rest.strip()!r} has a word without a value"
            raise PolicyError(f"profile {name!r}", why, "write WORD=VALUE, and a list with spaces: namespaces=pid uts")
        profiles[name] = vary(profiles[base], **{word.strip(): value.strip() for word, _, value in pairs})
    return profiles

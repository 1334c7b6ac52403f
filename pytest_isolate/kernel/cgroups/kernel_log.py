"""What the kernel's log says about an OOM kill: who was killed, and how big it was.

Owns: reading /dev/kmsg once, after a kill, and the two lines an OOM kill leaves there (mm/oom_kill.c).
Refuses: to be needed: where the log may not be read (dmesg_restrict), or the kernel has told of ten kills in five seconds
and tells of no more (oom_rs), the verdict stands without a name.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_RECORD_BYTES = 8192  # one read returns one record, PRINTK_MESSAGE_MAX is 2048
_CONTEXT = re.compile(
    r"oom-kill:.*?(?:oom_memcg=(?P<limit>[^,]*),|global_oom,)"
    r"task_memcg=(?P<cgroup>[^,]*),task=(?P<name>.*),pid=(?P<pid>\d+),uid=\d+"
)
_KILLED = re.compile(
    r"Killed process (?P<pid>\d+) \(.*\) .*anon-rss:(?P<anon>\d+)kB, file-rss:(?P<file>\d+)kB, shmem-rss:(?P<shmem>\d+)kB"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A process the OOM killer chose. ``pid`` is the host's number.

    ``own_limit``: the limit that was hit is that of the cgroup asked about, not of one above or the host's memory;
    ``inner_limit``: it is that of a cgroup inside it.
    """

    pid: int
    name: str
    rss_bytes: int
    own_limit: bool
    inner_limit: bool = False


def victim(cgroup: str) -> Victim | None:
    """Who was killed in ``cgroup`` (a path's tail, from the run's directory on), as of parse(); None if the log is silent."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return parse(_records(fd), cgroup)
    finally:
        os.close(fd)


def parse(lines: Iterable[str], cgroup: str) -> Victim | None:
    """Pure half of ``victim``: pair each ``oom-kill:`` line of our cgroup with the ``Killed process`` line after it.

    The last one killed, and one of a limit inside only where there is no other.
    """
    waiting: dict[int, tuple[str, str]] = {}
    found: Victim | None = None
    for line in lines:
        if (context := _CONTEXT.search(line)) and f"{cgroup}/" in context["cgroup"] + "/":
            waiting[int(context["pid"])] = context["name"], context["limit"] or ""
        elif (killed := _KILLED.search(line)) and int(killed["pid"]) in waiting:
            pid = int(killed["pid"])
            name, limit = waiting.pop(pid)
            rss_kib = int(killed["anon"]) + int(killed["file"]) + int(killed["shmem"])
            inner = f"{cgroup}/" in limit
            if found is None or found.inner_limit or not inner:
                found = Victim(
                    pid=pid,
                    name=name,
                    rss_bytes=rss_kib * 1024,
                    own_limit=limit.endswith(cgroup),
                    inner_limit=inner,
                )
    return found


def _records(fd: int) -> Iterable[str]:
    while True:
        try:
            record = os.read(fd, _RECORD_BYTES)
            if not record:  # the log has no end; this is /dev/null, in a sealed view or a container
                return
            yield record.decode("utf-8", "replace")
        except OSError as error:
            if error.errno != errno.EPIPE:  # that one: overwritten while we read, the next read goes on behind the gap
                return

"""eBPF for the network policy: load, attach, maps, ring buffer, test runs; through libbpf or bcc.

Owns: the door to the files of this package. Refuses: the meaning of a policy (network/ knows it).
"""

from pytest_isolate.kernel.bpf.dataplane import Dataplane, load
from pytest_isolate.kernel.bpf.links import Links
from pytest_isolate.kernel.bpf.maps import Map
from pytest_isolate.kernel.bpf.ring import Ring

__all__ = ["Dataplane", "Links", "Map", "Ring", "load"]

"""More descriptors than the limit."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="more descriptors than the limit",
    program="""
import resource
try: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
except ValueError: pass
attempt(lambda: [os.dup(0) for _ in range(128)])
""",
    refused=("EMFILE",),
    box={"rlimits": {"NOFILE": 64}},
)

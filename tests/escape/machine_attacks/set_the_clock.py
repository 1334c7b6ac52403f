"""The machine's clock, set (to what it says)."""

from tests.escape.attack import Attack

ATTACK = Attack(
    what="the machine's clock, set",
    program="""attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))""",
    refused=("EPERM",),
    control_by_root=True,
)

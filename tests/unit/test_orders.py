"""What a test's process is told: orders in advance, the word to go on, and the end, which goes before them.

Owns: orders.py alone, over a real pipe. Refuses: what a run looks like with it (tests/pytest/test_order_ahead.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from pytest_isolate.runner.orders import MOST_QUEUED, Inbox, Orders


@pytest.fixture
def ends() -> Iterator[tuple[Orders, Inbox]]:
    inbox_fd, orders_fd = os.pipe()
    orders = Orders(orders_fd)
    yield orders, Inbox(inbox_fd)
    orders.close()
    os.close(inbox_fd)


def test_what_is_ordered_is_run_in_order(ends: tuple[Orders, Inbox]) -> None:
    orders, inbox = ends
    orders.run([(3, 4), (4, 5)])
    orders.run([(5, None)])
    found = [inbox.next(held=False) for _ in range(3)]
    assert found == [{"item": 3, "next": 4}, {"item": 4, "next": 5}, {"item": 5, "next": None}]


def test_the_end_goes_before_what_was_ordered(ends: tuple[Orders, Inbox]) -> None:
    orders, inbox = ends
    orders.run([(3, 4), (4, 5), (5, None)])
    assert inbox.next(held=False) == {"item": 3, "next": 4}
    orders.end()
    assert inbox.next(held=False) is None
    assert inbox.next(held=False) is None


def test_a_parent_that_is_gone_wants_no_more(ends: tuple[Orders, Inbox]) -> None:
    orders, inbox = ends
    orders.close()
    assert inbox.next(held=False) is None


def test_after_a_failure_what_is_ordered_waits_for_the_word(ends: tuple[Orders, Inbox]) -> None:
    orders, inbox = ends
    orders.run([(3, 4), (4, None)])
    assert inbox.next(held=False) == {"item": 3, "next": 4}
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(inbox.next(held=True)))
    waiting.start()
    waiting.join(0.2)
    assert not found
    orders.held = True
    orders.go_on()
    waiting.join(10)
    assert found == [{"item": 4, "next": None}]


def test_after_a_failure_the_end_may_come(ends: tuple[Orders, Inbox]) -> None:
    orders, inbox = ends
    orders.run([(3, 4)])
    orders.end()
    assert inbox.next(held=True) is None


def test_room_is_made_by_the_half(ends: tuple[Orders, Inbox], request: pytest.FixtureRequest) -> None:
    orders, _ = ends
    rooms = []
    for _ in range(MOST_QUEUED):
        rooms.append(orders.room())
        orders.queued.append(request.node)
    half = MOST_QUEUED // 2
    assert rooms == [*range(MOST_QUEUED, half - 1, -1), *([0] * (half - 1))]
    assert orders.room() == 0

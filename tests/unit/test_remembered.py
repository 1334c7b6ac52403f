"""Answers found again by identity: made once while they are asked for, and few, however many are asked about once.

Owns: the two caches of remembered.py. Refuses: what is remembered, which its users test.
"""

from __future__ import annotations

import gc
import weakref

from pytest_isolate.remembered import Recent, Remembered


class Asked:
    """What can be asked about: compared by nothing."""


def test_what_is_asked_for_again_and_again_is_made_once_among_a_thousand_asked_for_once() -> None:
    answers: Remembered[object] = Remembered()
    often, made = Asked(), []
    for _ in range(1000):
        answers.of(often, lambda: made.append("often") or object())
        answers.of(Asked(), lambda: made.append("once") or object())
    assert (made.count("often"), made.count("once")) == (1, 1000)


def test_what_was_asked_about_once_does_not_live_for_long() -> None:
    answers: Remembered[object] = Remembered()
    seen = []
    for _ in range(1000):
        asked = Asked()
        seen.append(weakref.ref(asked))
        answers.of(asked, object)
    del asked
    gc.collect()
    alive = [place for place, seen_one in enumerate(seen) if seen_one() is not None]
    assert 32 <= len(alive) <= 64
    assert alive == list(range(1000 - len(alive), 1000))  # the last ones


def test_equal_values_have_answers_of_their_own_and_so_have_the_variants_of_one() -> None:
    answers: Remembered[int] = Remembered()
    one, equal = [1], [1]
    given = [answers.of(one, lambda: 1), answers.of(equal, lambda: 2), answers.of(one, lambda: 3, "variant")]
    assert given == [1, 2, 3]
    assert [answers.of(one, int), answers.of(equal, int), answers.of(one, int, "variant")] == given


def test_recent_answers_are_forgotten_one_by_one_or_all() -> None:
    answers: Recent[int] = Recent()
    one, other = Asked(), Asked()
    assert (answers.of(one, lambda: 1), answers.of(other, lambda: 2)) == (1, 2)
    answers.forget(one)
    assert (answers.of(one, lambda: 3), answers.of(other, lambda: 4)) == (3, 2)
    answers.forget()
    assert answers.of(other, lambda: 5) == 5

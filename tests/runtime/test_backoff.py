"""Waiting before trying again."""

from __future__ import annotations

from runtime.backoff import Backoff


def test_waits_double_up_to_the_most_and_begin_again() -> None:
    backoff = Backoff(1.0, 5.0, lambda: 1.0)
    assert [backoff.next_s() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 1.0
    backoff.exhaust()
    assert backoff.next_s() == 5.0


def test_each_wait_is_drawn_from_its_upper_half() -> None:
    assert Backoff(1.0, 5.0, lambda: 0.0).next_s() == 0.5

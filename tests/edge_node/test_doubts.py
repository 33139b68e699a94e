"""How long a region that does not serve is left alone."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from edge_node.forward.doubts import BELIEVE_S, FORGIVE_S, HOLD_S, LONGEST_HOLD_S, Doubts

NAME = "dubai"


def test_complaints_of_one_incident_count_once() -> None:
    doubts = Doubts()
    assert doubts.complain(NAME, "no tokens", 0.0)
    for at in (0.0, 0.1, HOLD_S - 0.01):
        assert not doubts.complain(NAME, "again", at)
    assert doubts.why(NAME, HOLD_S - 0.01) == "no tokens"
    assert doubts.why(NAME, HOLD_S) == ""
    assert doubts.why("frankfurt", 0.0) == ""


def test_each_further_hold_is_twice_as_long_up_to_a_limit() -> None:
    doubts, now, held = Doubts(), 0.0, []
    for _ in range(8):
        assert doubts.complain(NAME, "no tokens", now)
        began = now
        while doubts.why(NAME, now):
            now += 0.5
        held.append(now - began)
    assert held == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0, 60.0]
    assert max(held) == LONGEST_HOLD_S


def test_time_without_complaints_forgives() -> None:
    doubts = Doubts()
    doubts.complain(NAME, "no tokens", 0.0)
    late = HOLD_S + FORGIVE_S
    doubts.complain(NAME, "no tokens", late)
    assert doubts.why(NAME, late + HOLD_S) == ""


def test_an_answer_ends_the_hold_but_not_one_that_was_on_its_way() -> None:
    doubts = Doubts()
    doubts.complain(NAME, "no tokens", 0.0)
    assert not doubts.served(NAME, BELIEVE_S / 2)
    assert doubts.why(NAME, BELIEVE_S)
    assert doubts.served(NAME, BELIEVE_S)
    assert not doubts.why(NAME, BELIEVE_S)
    assert not doubts.served(NAME, BELIEVE_S)
    # It is not forgiven yet.
    doubts.complain(NAME, "no tokens", 2.0)
    assert doubts.why(NAME, 2.0 + 1.9 * HOLD_S)


def test_serving_for_long_forgives_altogether() -> None:
    doubts = Doubts()
    doubts.complain(NAME, "no tokens", 0.0)
    doubts.served(NAME, 0.5 * FORGIVE_S)
    assert len(doubts) == 1
    doubts.served(NAME, HOLD_S + FORGIVE_S)
    assert len(doubts) == 0


def test_whatever_comes_holds_end() -> None:
    """Any order of complaints and answers: no hold outlasts the longest, and few begin."""
    rng = Random(7)
    for _ in range(200):
        doubts, now, began = Doubts(), 0.0, []
        for _ in range(100):
            now += rng.choice((0.0, 0.01, 0.5, 4.0, 30.0))
            if rng.random() < 0.7:
                if doubts.complain(NAME, "no tokens", now):
                    began.append(now)
            else:
                doubts.served(NAME, now)
            assert not doubts.why(NAME, now + LONGEST_HOLD_S)
            assert len(doubts) <= 1
        assert all(b - a >= BELIEVE_S for a, b in pairwise(began))

"""Which relays are kept: places change hands rarely, and only for who is connected."""

from __future__ import annotations

from random import Random

import pytest

from edge_node.forward.standby import CHALLENGE_S, CONNECT_S, Standby

HELD = {"a": True, "b": True}
LATER = 100.0 + CHALLENGE_S


def test_the_nearest_are_kept_and_who_has_a_place_keeps_it() -> None:
    standby = Standby()
    assert standby.choose("abc", {}, "", 2, 0.0) == ("a", "b")
    assert standby.choose("cab", HELD, "", 2, 1.0) == ("a", "b")
    assert standby.choose("ab", HELD, "", 0, 2.0) == ()
    assert standby.choose((), HELD, "", 2, 3.0) == ()
    assert standby.choose("a", {}, "", 2, 3.0) == ("a",)


def test_who_is_no_candidate_any_more_makes_room_at_once() -> None:
    standby = Standby()
    assert standby.choose("bcd", HELD, "a", 2, 0.0) == ("b", "c")


def test_fewer_places_are_left_to_the_one_in_use() -> None:
    assert Standby().choose("ab", HELD, "b", 1, 0.0) == ("b",)


def test_a_nearer_one_takes_a_place_once_it_has_stood_there_and_is_connected() -> None:
    standby = Standby()
    assert standby.choose("cab", HELD, "b", 2, 100.0) == ("b", "a")
    assert standby.choose("cab", HELD, "b", 2, LATER) == ("b", "a", "c")
    assert standby.choose("cab", HELD | {"c": False}, "b", 2, LATER + 1) == ("b", "a", "c")
    # The one in use stays, though it is the furthest.
    assert standby.choose("cab", HELD | {"c": True}, "b", 2, LATER + 2) == ("b", "c")
    assert standby.choose("cab", {"b": True, "c": True}, "b", 2, LATER + 3) == ("b", "c")


def test_one_that_does_not_stay_nearer_takes_nothing() -> None:
    standby = Standby()
    for at in range(0, 1000, 5):
        order = "cab" if at % 10 else "abc"
        assert set(standby.choose(order, HELD, "a", 2, float(at))) == {"a", "b"}


def test_one_that_does_not_connect_gives_up_and_may_come_again() -> None:
    standby = Standby()
    standby.choose("cab", HELD, "a", 2, 100.0)
    standby.choose("cab", HELD, "a", 2, LATER)
    held = HELD | {"c": False}
    at = LATER + CONNECT_S
    assert standby.choose("cab", held, "a", 2, at) == ("a", "b")
    assert standby.choose("cab", HELD, "a", 2, at + 1) == ("a", "b")
    assert standby.choose("cab", HELD, "a", 2, at + CHALLENGE_S) == ("a", "b", "c")


def test_a_challenger_takes_a_place_that_falls_free() -> None:
    standby = Standby()
    standby.choose("cab", HELD, "a", 2, 100.0)
    standby.choose("cab", HELD, "a", 2, LATER)
    assert standby.choose("ca", HELD | {"c": False}, "a", 2, LATER + 1) == ("a", "c")


def test_the_only_place_changes_hands_though_it_is_in_use() -> None:
    standby = Standby()
    standby.choose("ba", {"a": True}, "a", 1, 100.0)
    assert standby.choose("ba", {"a": True}, "a", 1, LATER) == ("a", "b")
    assert standby.choose("ba", {"a": True, "b": True}, "a", 1, LATER + 1) == ("b",)


@pytest.mark.parametrize("seed", range(40))
def test_at_any_time_within_bounds(seed: int) -> None:
    """Whatever orders, losses and connections come: no more than the limit and one, only
    candidates, none twice, and no place changes hands faster than challenges allow."""
    rng, standby = Random(seed), Standby()
    names = [f"r{i}" for i in range(6)]
    held: dict[str, bool] = {}
    limit, now, exchanged = 2, 0.0, 0
    for _ in range(400):
        now += rng.choice((0.0, 1.0, 10.0))
        candidates = rng.sample(names, 6)
        before = set(held)
        kept = standby.choose(candidates, held, rng.choice([*held, ""]), limit, now)
        assert len(kept) == len(set(kept)) <= limit + 1
        assert set(kept) <= set(candidates)
        assert len(kept) >= limit
        exchanged += len(before - set(kept))
        held = {relay: rng.random() < 0.5 for relay in kept}
    assert exchanged <= 2 * (now / CHALLENGE_S + 1)

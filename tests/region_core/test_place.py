"""What foreign callers say of their urgency and place, and what is made of it."""

from __future__ import annotations

import pytest

from region_core.ingress.place import sane_cursor, urgency_of
from runtime.clock import ManualClock
from topology.cursor import MAX_CURSOR, USERS


@pytest.mark.parametrize(
    ("header", "urgency"),
    [
        (None, 3),
        ("", 3),
        ("u=5", 5),
        ("u=7, i", 7),
        ("i, u=4", 4),
        ("u=2;x=1", 2),
        ("u=0", 2),  # nobody vouches for a tier here
        ("u=1", 2),
        ("u=8", 3),
        ("u=-1", 3),
        ("u=55", 3),
        ("urgent", 3),
        ("xu=6", 3),
        ("u=6" * 10_000, 3),
        (" " * 100_000 + "u=6", 3),
    ],
)
def test_the_header_priority_is_a_hint(header: str | None, urgency: int) -> None:
    assert urgency_of(header) == urgency


@pytest.mark.parametrize("urgency", range(8))
@pytest.mark.parametrize("said", [0, 1, 127, 128, 200, 256, MAX_CURSOR])
def test_nobody_is_placed_before_their_own_tier(urgency: int, said: int) -> None:
    clock = ManualClock()
    tier = 0 if urgency <= 1 else 1 if urgency <= 4 else 2
    found = sane_cursor(said, urgency, "acme", "anna", clock)
    assert tier * USERS <= found <= MAX_CURSOR
    if said > tier * USERS:
        assert found == said


def test_one_user_keeps_the_place_and_users_differ() -> None:
    clock = ManualClock()
    places = {sane_cursor(0, 3, "acme", f"user {n}", clock) for n in range(2000)}
    assert places == set(range(USERS, 2 * USERS))
    assert sane_cursor(0, 3, "a", "u", clock) == sane_cursor(5, 3, "a", "u", clock)

"""Probes and echoes as bytes, and how much is lost as a share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.overlay.loss import LossWindow
from topology.overlay.probe import (
    MAX_FRAME_BYTES,
    PER_S,
    Budget,
    Echo,
    Probe,
    decode,
    encode_echo,
    encode_probe,
)

U32 = st.integers(0, 2**32 - 1)


@given(U32, U32, U32, st.booleans(), st.binary(max_size=20))
def test_what_is_encoded_is_decoded(
    number: int, got: int, sent: int, stalled: bool, more: bytes
) -> None:
    """Also with bytes behind it that only a newer version knows."""
    assert decode(encode_probe(number) + more) == Probe(number)
    assert decode(encode_echo(number, got, sent, stalled) + more) == Echo(
        number, got, sent, stalled
    )
    assert len(encode_echo(number, got, sent, stalled)) + 2 < MAX_FRAME_BYTES


@given(st.binary(max_size=80))
def test_any_bytes_are_something_or_nothing(data: bytes) -> None:
    said = decode(data)
    assert (said is None) == (
        not data or ((data[0] != 1 or len(data) < 5) and (data[0] != 2 or len(data) < 14))
    )


def test_flags_that_are_not_known_are_ignored() -> None:
    assert decode(encode_echo(1, 2, 3, False)[:-1] + b"\xfe") == Echo(1, 2, 3, False)
    assert decode(encode_echo(1, 2, 3, True)[:-1] + b"\xff") == Echo(1, 2, 3, True)


def test_a_budget_is_so_many_a_second() -> None:
    budget = Budget()
    assert sum(budget.take(5.0 + n / 10_000) for n in range(5000)) == PER_S
    assert budget.take(6.1)


@given(
    st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 60), st.floats(0.0, 1.0)), max_size=60),
    st.integers(1, 25),
)
def test_a_share_of_loss_is_what_a_naive_list_says(
    steps: list[tuple[float, int, float]], least: int
) -> None:
    window, now = LossWindow(), 1000.0
    everything: list[tuple[int, int, int]] = []  # which half second, sent, lost
    for gap, sent, share in steps:
        now += gap
        lost = int(sent * share)
        window.add(now, sent, lost)
        everything.append((int(now * 2), sent, lost))
        this, sums = int(now * 2), [0, 0]
        for which in range(this, this - 60, -1):
            if sums[0] >= 30 and which <= this - 2:
                break
            sums[0] += sum(s for w, s, _ in everything if w == which)
            sums[1] += sum(gone for w, _, gone in everything if w == which)
        wanted = sums[1] / sums[0] if sums[0] >= least else None
        assert window.share(now, least) == (None if wanted is None else pytest.approx(wanted))


def test_what_was_taken_for_lost_and_came_is_taken_back() -> None:
    window = LossWindow()
    window.add(1.0, 10, 4)
    window.add(1.1, 0, -3)
    assert window.share(1.2) == 0.1
    window.add(1.3, 0, -9)
    assert window.share(1.4) == 0.0

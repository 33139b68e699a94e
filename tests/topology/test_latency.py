"""Published distances, and the windowed minimum against a naive oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.latency import WindowedMin, published_rtt_ms, published_table


@pytest.mark.parametrize(
    ("a", "b", "ms"),
    [
        ("Tokyo", "Singapore", 71),
        ("Dubai", "Mumbai", 31),
        ("Singapore", "Frankfurt", 161),
        ("Frankfurt", "Dubai", 116),
        ("Tel Aviv", "Frankfurt", 63),
        ("Tokyo", "London", None),
        ("Atlantis", "Dubai", None),
    ],
)
def test_published(a: str, b: str, ms: float | None) -> None:
    assert published_rtt_ms(a, b) == ms
    assert published_rtt_ms(b, a) == ms


def test_table_holds_every_pair() -> None:
    table = published_table()
    assert all(published_rtt_ms(a, b) == ms for (a, b), ms in table.items())
    assert len(table) == 11 * 3 + 3


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 500)), min_size=1, max_size=60))
def test_windowed_min_against_all_samples(steps: list[tuple[float, float]]) -> None:
    """It never forgets within four fifths of a window, nor remembers beyond a window."""
    window = WindowedMin(window_s=10.0)
    now = 50.0
    seen: list[tuple[float, float]] = []
    for gap, sample in steps:
        now += gap
        window.add(now, sample)
        seen.append((now, sample))
        estimate = window.at(now)
        assert estimate is not None
        assert estimate <= min(s for t, s in seen if t > now - 8.0)
        assert estimate >= min(s for t, s in seen if t > now - 10.0)
        assert len(window._least) <= 5


def test_an_old_path_is_unknown() -> None:
    window = WindowedMin(window_s=10.0)
    window.add(0.0, 5.0)
    assert window.at(7.9) == 5.0
    assert window.at(10.0) is None

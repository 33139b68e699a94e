"""Figures are read as they are written, and written as they are read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.wan import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.milliseconds, "200ms", 200),
        (units.milliseconds, " 1.5 s", 1500),
        (units.milliseconds, "2m", 120_000),
        (units.milliseconds, "500us", 0.5),
        (units.milliseconds, "0", 0),
        (units.share, "30%", 0.3),
        (units.share, "0.3", 0.3),
        (units.share, "1", 1),
        (units.bandwidth, "10mbit", 1e7),
        (units.bandwidth, "64Kbit", 64_000),
        (units.bandwidth, "1.5gbit", 1.5e9),
        (units.bandwidth, "800bit", 800),
        (units.bandwidth, "Unlimited", 0),
    ],
)
def test_what_is_read(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "ms", "-1s", "1e3s", "nan", "5", "5h", "1s1s", "٣s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="no duration: 200ms"):
        units.milliseconds(text)


@pytest.mark.parametrize("text", ["", "%", "101%", "2", "-0.1", "nan", "1e-3", "half"])
def test_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="no share: 30%"):
        units.share(text)


@pytest.mark.parametrize("text", ["", "10", "10mb", "0mbit", "-1mbit", "infbit", "mbit"])
def test_no_bandwidth(text: str) -> None:
    with pytest.raises(ValueError, match="no bandwidth: 10mbit"):
        units.bandwidth(text)


@given(st.integers(0, 60_000), st.integers(0, 1000), st.integers(1, 10**6))
def test_what_is_shown_is_read_again(ms: int, per_mille: int, kbit: int) -> None:
    assert units.milliseconds(units.show_ms(ms)) == pytest.approx(ms, rel=1e-5)
    assert units.share(units.show_share(per_mille / 1000)) == pytest.approx(per_mille / 1000)
    assert units.bandwidth(units.show_bandwidth(kbit * 1000.0)) == pytest.approx(
        kbit * 1000, rel=1e-5
    )


@given(st.text(max_size=20))
def test_any_text_is_a_figure_or_told_why_not(text: str) -> None:
    for parse in (units.milliseconds, units.share, units.bandwidth):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert repr(text) in str(error)

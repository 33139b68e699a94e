"""Published round-trip times between places, for the lab and until a link is measured.

Source: the medians that a public monitor of AWS inter-region latency reported (p50 over a
year, read 2026-11), with Singapore ap-southeast-1, Frankfurt eu-central-1 and the UAE
me-central-1 (our Dubai); each other city is the AWS region in it or next to it (Riyadh has
none: its figures are Bahrain's plus the 6 ms that the 420 km between them cost in fibre).
"""

from __future__ import annotations

from collections.abc import Mapping

SOURCE = "AWS inter-region medians, read 2026-11"

# Milliseconds, city -> (to Singapore, to Frankfurt, to Dubai).
_TO_REGION: dict[str, tuple[float, float, float]] = {
    "Tokyo": (71, 227, 170),
    "Mumbai": (64, 129, 31),
    "Riyadh": (104, 92, 22),
    "London": (173, 18, 123),
    "Sao Paulo": (327, 204, 307),
    "Sydney": (95, 252, 182),
    "Virginia": (219, 93, 194),
    "Bahrain": (98, 86, 16),
    "Hong Kong": (37, 193, 127),
    "Seoul": (74, 231, 169),
    "Tel Aviv": (202, 63, 144),
}
_REGIONS = ("Singapore", "Frankfurt", "Dubai")
_BETWEEN_REGIONS = {
    frozenset(("Singapore", "Frankfurt")): 161.0,
    frozenset(("Singapore", "Dubai")): 90.0,
    frozenset(("Frankfurt", "Dubai")): 116.0,
}


def published_rtt_ms(source: str, target: str) -> float | None:
    """The published round-trip time between two cities in ms; None where none is published."""
    if source == target:
        return 1.0
    for city, region in ((source, target), (target, source)):
        row = _TO_REGION.get(city)
        if row is not None and region in _REGIONS:
            return row[_REGIONS.index(region)]
    return _BETWEEN_REGIONS.get(frozenset((source, target)))


def published_table() -> Mapping[tuple[str, str], float]:
    """Every published pair, (city, region city) -> ms."""
    rows = {
        (city, region): value
        for city, row in _TO_REGION.items()
        for region, value in zip(_REGIONS, row, strict=True)
    }
    for pair, value in _BETWEEN_REGIONS.items():
        first, second = sorted(pair)
        rows[first, second] = value
    return rows


class WindowedMin:
    """The least round-trip time of the last `window_s`, in the unit of its samples.

    What a path takes when nothing queues in it, and so what it is chosen by: a busy process or
    a full buffer makes a sample longer and says nothing about the distance. Keeps the least
    sample of each of `_SLICES` parts of the window, as BBR's filter does (Cardwell et al.,
    "BBR: Congestion-Based Congestion Control", 2016, section on RTprop).
    """

    __slots__ = ("_least", "_slice_s")

    def __init__(self, window_s: float = 10.0) -> None:
        self._slice_s = window_s / _SLICES
        self._least: dict[int, float] = {}  # slice number -> least sample in it

    def add(self, now: float, sample: float) -> None:
        """Take a sample seen at `now` (seconds)."""
        part = int(now / self._slice_s)
        held = self._least.get(part)
        if held is None:
            self._least = {p: v for p, v in self._least.items() if p > part - _SLICES}
        if held is None or sample < held:
            self._least[part] = sample

    def at(self, now: float) -> float | None:
        """The estimate at `now`; None when nothing was seen for a window."""
        oldest = int(now / self._slice_s) - _SLICES
        return min((v for p, v in self._least.items() if p > oldest), default=None)


_SLICES = 5

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

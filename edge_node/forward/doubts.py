"""Regions that answer probes and do not serve: for how long each is left alone. Pure.

A complaint keeps a region out of the choice for `HOLD_S`, each further one that follows soon for
twice as long as the one before. An answer that came whole, well after the last complaint, ends the
hold; one that comes when there was none for as long as the last hold forgives all of them.
"""

from __future__ import annotations

from msgspec import Struct

HOLD_S = 3.0
LONGEST_HOLD_S = 60.0
BELIEVE_S = 1.0  # an answer that ends so soon after a complaint may have been on its way already
FORGIVE_S = 10.0  # the least time without complaints that forgives the past ones


class _Doubt(Struct):
    why: str
    complained_s: float  # the last one
    hold_s: float
    until_s: float


class Doubts:
    """Of one edge worker. As many entries as there are regions, at most."""

    def __init__(self) -> None:
        self._held: dict[str, _Doubt] = {}

    def complain(self, region: str, why: str, now: float) -> bool:
        """The region did not serve. Whether this began a hold: those who complain together, of
        one incident, lengthen nothing."""
        doubt = self._held.get(region)
        if doubt is None:
            self._held[region] = _Doubt(why, now, HOLD_S, now + HOLD_S)
            return True
        began = now >= doubt.until_s
        if began:
            forgiven = now - doubt.complained_s >= _forgiven_after(doubt)
            doubt.hold_s = HOLD_S if forgiven else min(LONGEST_HOLD_S, 2.0 * doubt.hold_s)
            doubt.until_s = now + doubt.hold_s
            doubt.why = why
        doubt.complained_s = now
        return began

    def served(self, region: str, now: float) -> bool:
        """An answer of the region came whole. Whether this ended a hold."""
        doubt = self._held.get(region)
        if doubt is None or now - doubt.complained_s < BELIEVE_S:
            return False
        ended = now < doubt.until_s
        doubt.until_s = min(doubt.until_s, now)
        if now - doubt.complained_s >= _forgiven_after(doubt):
            del self._held[region]
        return ended

    def why(self, region: str, now: float) -> str:
        """Why the region is not to be asked now; empty: it may be."""
        doubt = self._held.get(region)
        return doubt.why if doubt is not None and now < doubt.until_s else ""

    def forget(self, region: str) -> None:
        """The region is no more."""
        self._held.pop(region, None)

    def __len__(self) -> int:
        return len(self._held)


def _forgiven_after(doubt: _Doubt) -> float:
    """How long after the last complaint. A hold in which nobody was asked forgives nothing."""
    return doubt.hold_s + max(FORGIVE_S, doubt.hold_s)

"""Where an edge worker stands on the degradation ladder as heartbeats carry it, within bounds.

Who sends cuts what is too long; who receives refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from msgspec import Struct

from topology.cursor import TIERS
from topology.policy import LADDER
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb
from topology.wire.path_reports import TEXT_MAX, TIME_MAX_S, fit

QUALITIES = tuple(rung.quality for rung in LADDER)
FIGURE_MAX = 1e9


class StandingReport(Struct, frozen=True):
    """Of one tier. `since_s` is Unix time; `recent`: quality -> requests served so, per second."""

    tier: str
    quality: str
    since_s: float
    pressure: float
    why: str
    recent: Mapping[str, float] = {}


def to_standings(reports: Iterable[StandingReport]) -> list[pb.Standing]:
    """As a heartbeat carries them."""
    return [
        pb.Standing(
            tier=report.tier,
            quality=report.quality,
            since_s=_within(report.since_s, TIME_MAX_S),
            pressure=_within(report.pressure, FIGURE_MAX),
            why=fit(report.why, TEXT_MAX),
            recent={q: _within(rate, FIGURE_MAX) for q, rate in report.recent.items()},
        )
        for report in reports
    ]


def read_standings(standings: Iterable[pb.Standing]) -> tuple[StandingReport, ...]:
    """The reverse of `to_standings`; what `standing_problems` has nothing to say of."""
    return tuple(
        StandingReport(s.tier, s.quality, s.since_s, s.pressure, s.why, dict(s.recent))
        for s in standings
    )


def standing_problems(standings: Sequence[pb.Standing]) -> list[str]:
    """What is wrong with what a heartbeat tells, each mistake once."""
    if len(standings) > len(TIERS) or len({s.tier for s in standings}) < len(standings):
        return ["ladder: each tier once"]
    found: dict[str, None] = {}
    for standing in standings:
        found.update(dict.fromkeys(_problems(standing)))
    return list(found)


def _problems(standing: pb.Standing) -> Iterable[str]:
    if standing.tier not in TIERS:
        yield f"ladder: a tier of {', '.join(TIERS)}"
    if not {standing.quality, *standing.recent}.issubset(QUALITIES):
        yield f"ladder: a quality of {', '.join(QUALITIES)}"
    if not 0 <= standing.since_s <= TIME_MAX_S:
        yield "ladder: since_s in Unix time"
    if not all(0 <= f <= FIGURE_MAX for f in (standing.pressure, *standing.recent.values())):
        yield f"ladder: figures from 0 to {FIGURE_MAX:g}"
    if len(standing.why) > TEXT_MAX or not standing.why.isprintable():
        yield f"ladder: why in at most {TEXT_MAX} printable characters"


def _within(value: float, most: float) -> float:
    return min(max(0.0, value), most) if isfinite(value) else 0.0

"""An edge worker's ways to regions as heartbeats carry them, within bounds at both ends.

Who sends cuts what is too long; who receives refuses it. Figures that are not known travel as -1
(a round-trip time as 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from msgspec import Struct

from topology.paths import PathChange
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb

NAME_MAX = 63  # characters, as of any name
STATE_MAX = 20
TEXT_MAX = 400
PATHS_MAX = 16  # to one region
EVENTS_MAX = 32
FIGURE_MAX_MS = 600_000.0
TIME_MAX_S = 1e11


class PathReport(Struct, frozen=True):
    """One way to a region as one worker sees it. Shares are of what is sent; None: not measured."""

    region: str
    relay: str  # "": straight
    up: bool
    state: str  # as the monitor has it: up | suspect | silent | stalled | connecting | waiting
    rtt_ms: float | None = None  # what it is chosen by, and
    extra_ms: float = 0.0  # what losses and the relay count for beside it
    measured_rtt_ms: float | None = None
    jitter_ms: float | None = None
    loss_out: float | None = None
    loss_back: float | None = None
    since_s: float = 0.0  # Unix time since when it is in this state
    why: str = ""  # it is in this place of the order
    exchanges: int = 0  # open ones


def to_paths(reports: Iterable[PathReport]) -> list[pb.PathSeen]:
    """As a heartbeat carries the ways to one region, in their order."""
    return [
        pb.PathSeen(
            relay=report.relay,
            up=report.up,
            state=fit(report.state, STATE_MAX),
            rtt_ms=_figure(report.rtt_ms, 0.0),
            extra_ms=_figure(report.extra_ms, 0.0),
            measured_rtt_ms=_figure(report.measured_rtt_ms, 0.0),
            jitter_ms=_figure(report.jitter_ms, -1.0),
            loss_out=_share(report.loss_out),
            loss_back=_share(report.loss_back),
            since_s=_time(report.since_s),
            why=fit(report.why, TEXT_MAX),
            exchanges=max(0, min(report.exchanges, 2**32 - 1)),
        )
        for report in list(reports)[:PATHS_MAX]
    ]


def to_events(changes: Sequence[PathChange]) -> list[pb.PathEvent]:
    """The newest of them, the oldest first."""
    return [
        pb.PathEvent(
            at_s=_time(change.at_s),
            region=change.region,
            before=change.before,
            after=change.after,
            why=fit(change.why, TEXT_MAX),
        )
        for change in changes[-EVENTS_MAX:]
    ]


def read_paths(seen: pb.RegionSeen) -> tuple[PathReport, ...]:
    """The reverse of `to_paths`; what `path_problems` has nothing to say of."""
    return tuple(
        PathReport(
            region=seen.region,
            relay=path.relay,
            up=path.up,
            state=path.state,
            rtt_ms=path.rtt_ms or None,
            extra_ms=path.extra_ms,
            measured_rtt_ms=path.measured_rtt_ms or None,
            jitter_ms=_known(path.jitter_ms),
            loss_out=_known(path.loss_out),
            loss_back=_known(path.loss_back),
            since_s=path.since_s,
            why=path.why,
            exchanges=path.exchanges,
        )
        for path in seen.paths
    )


def read_events(events: Iterable[pb.PathEvent]) -> tuple[PathChange, ...]:
    return tuple(PathChange(e.at_s, e.region, e.before, e.after, e.why) for e in events)


def path_problems(seen: Iterable[pb.RegionSeen]) -> list[str]:
    """What is wrong with the ways that a heartbeat tells of, each mistake once."""
    found: dict[str, None] = {}
    for region in seen:
        if not 0 <= region.queue_ms <= FIGURE_MAX_MS:
            found[f"regions: queue_ms from 0 to {FIGURE_MAX_MS:g}"] = None
        if len(region.paths) > PATHS_MAX:
            found[f"paths: at most {PATHS_MAX} to a region"] = None
        elif len({path.relay for path in region.paths}) < len(region.paths):
            found["paths: each relay once"] = None
        for path in region.paths[:PATHS_MAX]:
            found.update(dict.fromkeys(_path_problems(path)))
    return list(found)


def _path_problems(path: pb.PathSeen) -> Iterable[str]:
    if len(path.relay) > NAME_MAX or not path.relay.isprintable():
        yield f"paths: relays of at most {NAME_MAX} characters"
    if len(path.state) > STATE_MAX or not path.state.isprintable():
        yield f"paths: a state of at most {STATE_MAX} characters"
    if len(path.why) > TEXT_MAX or not path.why.isprintable():
        yield f"paths: why in at most {TEXT_MAX} printable characters"
    if not all(
        low <= figure <= FIGURE_MAX_MS
        for low, figure in (
            (0, path.rtt_ms), (0, path.extra_ms), (0, path.measured_rtt_ms), (-1, path.jitter_ms)
        )
    ):  # fmt: skip
        yield f"paths: times in ms from 0 to {FIGURE_MAX_MS:g}"
    if not all(-1 <= share <= 1 for share in (path.loss_out, path.loss_back)):
        yield "paths: losses from 0 to 1"
    if not 0 <= path.since_s <= TIME_MAX_S:
        yield "paths: since_s in Unix time"


def event_problems(events: Sequence[pb.PathEvent]) -> list[str]:
    if len(events) > EVENTS_MAX:
        return [f"path_events: {len(events)}; at most {EVENTS_MAX}"]
    problems = []
    names = [name for event in events for name in (event.region, event.before, event.after)]
    if any(len(name) > NAME_MAX + len("via ") or not name.isprintable() for name in names):
        problems.append(f"path_events: names of at most {NAME_MAX} characters")
    if any(len(event.why) > TEXT_MAX or not event.why.isprintable() for event in events):
        problems.append(f"path_events: why in at most {TEXT_MAX} printable characters")
    if not all(0 <= event.at_s <= TIME_MAX_S for event in events):
        problems.append("path_events: at_s in Unix time")
    return problems


def by_region(reports: Iterable[PathReport]) -> Mapping[str, list[PathReport]]:
    found: dict[str, list[PathReport]] = {}
    for report in reports:
        found.setdefault(report.region, []).append(report)
    return found


def _figure(value_ms: float | None, unknown: float) -> float:
    if value_ms is None or not isfinite(value_ms):
        return unknown
    return min(max(0.0, value_ms), FIGURE_MAX_MS)


def _share(value: float | None) -> float:
    return -1.0 if value is None or not isfinite(value) else min(max(0.0, value), 1.0)


def _time(unix_s: float) -> float:
    return min(max(0.0, unix_s), TIME_MAX_S) if isfinite(unix_s) else 0.0


def _known(value: float) -> float | None:
    return value if value >= 0 else None


def fit(text: str, most: int) -> str:
    """One line of printable characters."""
    text = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"

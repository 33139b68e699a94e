"""The figures of a run, from its rows and its counters. Pure.

An answer counts when it came whole before its client gave that try up. *Goodput* is answers that
regions gave; what came from a cache is counted apart. Latencies count from when a request was due,
its earlier tries included, and are of those answered; `success` says how many were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor

from msgspec import Struct

from lab.storm.event import Phase
from lab.storm.rows import Row
from topology.cursor import TIERS, Tier

# After the peak, a window counts as well for a tier when no more than this share of its requests
# failed or took longer than `SLOW` times the unloaded p99.
WINDOW_S = 0.5
EXCEPTIONS = 0.02
SLOW = 1.5
# What is due so shortly before the event may be answered in it: it is not unloaded.
LAST_CALM_S = 2.0
RAMP_S = 1.5  # of the peak: the cores' batches fill up
# Served without a region.
_NOT_FROM_A_REGION = ("cache", "cached", "stale", "edge-model")


class TierFigures(Struct, frozen=True, kw_only=True):
    """One tier, through the whole event. Milliseconds; -1: nothing was answered."""

    requests: int
    answered: int
    success: float
    p50_ms: float
    p99_ms: float
    p50_unloaded_ms: float
    p99_unloaded_ms: float
    first_token_p50_ms: float
    first_token_p99_ms: float
    first_token_p99_unloaded_ms: float
    unloaded_requests: int
    unloaded_success: float
    tries: int
    timeouts: int  # tries that were given up
    refusals: int  # tries that were told 429 or 503
    recovery_s: float | None  # None: not before the event was over


class Second(Struct, frozen=True, kw_only=True):
    """One second of a run; by tier in the order of `TIERS`."""

    at_s: int
    due: tuple[int, ...]  # requests that came to be made
    tries: int  # requests sent, repeats included
    reached_cores: float  # as the cores count
    admitted: float  # that cores took on
    goodput: int  # answers of regions, in time
    answered: tuple[int, ...]  # all answers in time, by when they came
    failed: tuple[int, ...]  # by when they were due
    p99_ms: tuple[float, ...]  # of those answered, by when they were due
    waiting: float  # in the cores, at its end
    qualities: dict[str, int]  # of answers in time


def nearest(values: Iterable[float], share: float) -> float:
    """The percentile (nearest rank); -1 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return -1.0
    return ordered[min(len(ordered) - 1, floor(share * len(ordered)))]


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1) if seconds >= 0 else -1.0


def from_region(row: Row) -> bool:
    """Whether a region answered it whole and in time."""
    if not row.ok or row.cached or row.quality in _NOT_FROM_A_REGION:
        return False
    return row.served_by in ("", "region")


def tier_figures(rows: Sequence[Row], tier: Tier, phases: Sequence[Phase]) -> TierFigures:
    mine = [row for row in rows if row.tier == tier]
    calm = unloaded_rows(mine, phases)
    event = [row for row in mine if row.phase != "baseline"]
    answered = [row for row in event if row.ok]
    unloaded = [row for row in calm if row.ok]
    p99_unloaded = nearest((row.whole_s for row in unloaded), 0.99)
    return TierFigures(
        requests=len(event),
        answered=len(answered),
        success=_share(len(answered), len(event)),
        p50_ms=milliseconds(nearest((row.whole_s for row in answered), 0.5)),
        p99_ms=milliseconds(nearest((row.whole_s for row in answered), 0.99)),
        p50_unloaded_ms=milliseconds(nearest((row.whole_s for row in unloaded), 0.5)),
        p99_unloaded_ms=milliseconds(p99_unloaded),
        first_token_p50_ms=milliseconds(nearest(_first_tokens(answered), 0.5)),
        first_token_p99_ms=milliseconds(nearest(_first_tokens(answered), 0.99)),
        first_token_p99_unloaded_ms=milliseconds(nearest(_first_tokens(unloaded), 0.99)),
        unloaded_requests=len(calm),
        unloaded_success=_share(len(unloaded), len(calm)),
        tries=sum(len(row.sends) for row in event),
        timeouts=sum(row.timeouts for row in event),
        refusals=sum(row.refusals for row in event),
        recovery_s=recovery_s(mine, p99_unloaded, phases),
    )


def unloaded_rows(rows: Iterable[Row], phases: Sequence[Phase]) -> list[Row]:
    """Those of the normal load before the event."""
    ends_s = next((phase.ends_s for phase in phases if phase.name == "baseline"), 0.0)
    return [row for row in rows if row.phase == "baseline" and row.due_s < ends_s - LAST_CALM_S]


def recovery_s(rows: Sequence[Row], p99_unloaded_s: float, phases: Sequence[Phase]) -> float | None:
    """From the end of the peak until requests fare as they did before, and go on to: the end of
    the last half second in which too many failed or were slow. None: that is the last one."""
    tail = next((phase for phase in phases if phase.name == "tail"), None)
    if tail is None:
        return None
    count = round((tail.ends_s - tail.begins_s) / WINDOW_S)
    bad = [0] * count
    all_ = [0] * count
    for row in rows:
        if row.phase == "tail":
            index = min(count - 1, int((row.due_s - tail.begins_s) / WINDOW_S))
            all_[index] += 1
            bad[index] += not row.ok or row.whole_s > SLOW * p99_unloaded_s
    ill = [i for i in range(count) if bad[i] > floor(EXCEPTIONS * all_[i])]
    if not ill:
        return 0.0
    last = ill[-1]
    return None if not any(all_[last + 1 :]) else round((last + 1) * WINDOW_S, 2)


def goodput_rps(rows: Iterable[Row], from_s: float, to_s: float) -> float:
    """Answers of regions a second, by when they came."""
    count = sum(from_region(row) and from_s <= row.done_s < to_s for row in rows)
    return count / (to_s - from_s)


def distinct_rps(rows: Iterable[Row], from_s: float, to_s: float) -> float:
    """The same, with an answer that several clients share counted once."""
    found = {
        row.answer_id or row.number
        for row in rows
        if from_region(row) and from_s <= row.done_s < to_s
    }
    return len(found) / (to_s - from_s)


def answers_rps(rows: Iterable[Row], from_s: float, to_s: float) -> float:
    """All answers a second, from caches too."""
    return sum(row.ok and from_s <= row.done_s < to_s for row in rows) / (to_s - from_s)


def offered_rps(rows: Iterable[Row], from_s: float, to_s: float) -> float:
    """Requests a second that came to be made, repeats not included."""
    return sum(from_s <= row.due_s < to_s for row in rows) / (to_s - from_s)


def tries_rps(rows: Iterable[Row], from_s: float, to_s: float) -> float:
    """Requests sent a second, repeats included."""
    return sum(from_s <= at_s < to_s for row in rows for at_s in row.sends) / (to_s - from_s)


def sent_upstream(rows: Iterable[Row]) -> int:
    """Distinct requests of clients that a region is known to have seen, or that may have been on
    their way to one when their client gave up; not what an edge had in its cache. Those who share
    an answer were sent as one."""
    sent, shared = 0, set()
    for row in rows:
        if row.timeouts > 0:
            sent += 1
        elif row.upstream and row.served_by != "cache":
            if row.ok and row.answer_id:
                shared.add(row.answer_id)
            else:
                sent += 1
    return sent + len(shared)


def seconds(
    rows: Sequence[Row],
    length_s: int,
    reached: Sequence[float],
    admitted: Sequence[float],
    waiting: Sequence[float],
) -> tuple[Second, ...]:
    """A run second by second. `reached` and `admitted` are counters at each whole second."""
    due = [[0] * len(TIERS) for _ in range(length_s)]
    failed = [[0] * len(TIERS) for _ in range(length_s)]
    answered = [[0] * len(TIERS) for _ in range(length_s)]
    latencies: list[list[list[float]]] = [[[] for _ in TIERS] for _ in range(length_s)]
    tries = [0] * length_s
    goodput = [0] * length_s
    qualities: list[dict[str, int]] = [{} for _ in range(length_s)]

    def put(at_s: float) -> int:
        return max(0, min(length_s - 1, int(at_s)))

    for row in rows:
        tier, at = TIERS.index(row.tier), put(row.due_s)
        due[at][tier] += 1
        for sent_s in row.sends:
            tries[put(sent_s)] += 1
        if not row.ok:
            failed[at][tier] += 1
            continue
        latencies[at][tier].append(row.whole_s)
        done = put(row.done_s)
        answered[done][tier] += 1
        goodput[done] += from_region(row)
        quality = row.quality or ("cached" if row.served_by == "cache" else "full")
        qualities[done][quality] = qualities[done].get(quality, 0) + 1
    return tuple(
        Second(
            at_s=at,
            due=tuple(due[at]),
            tries=tries[at],
            reached_cores=round(reached[at + 1] - reached[at], 1),
            admitted=round(admitted[at + 1] - admitted[at], 1),
            goodput=goodput[at],
            answered=tuple(answered[at]),
            failed=tuple(failed[at]),
            p99_ms=tuple(milliseconds(nearest(some, 0.99)) for some in latencies[at]),
            waiting=round(waiting[at + 1], 1),
            qualities=qualities[at],
        )
        for at in range(length_s)
    )


def _first_tokens(rows: Iterable[Row]) -> list[float]:
    """Of streamed answers; whole ones have no first token of their own."""
    return [row.first_s - row.due_s for row in rows if row.streamed and row.first_s >= 0]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 1.0

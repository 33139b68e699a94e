"""The ways from an edge to a region: straight, or through one other region. Pure.

A way is scored in milliseconds: its round-trip time, what its losses cost, and what a relay
counts for. Another way is taken when it wins `better_by_ms` and `better_by_share` of the one in
use, or when that one is dead. What was left, dead or not, is not taken again before `failback_s`,
and later each time it happens again soon. So noise changes nothing; and whatever a way does, it is
left at most once in that time while another one lives. `docs/paths.md` says it for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite
from typing import Protocol

from msgspec import Struct

from topology import path_words as words
from topology.path_score import Score as Score
from topology.path_score import loss_ms, merit, placed, score_ms, usable, with_new
from topology.path_score import rank as rank
from topology.policy import PathPolicy

DIRECT = "direct"

UP = frozenset({"up", "suspect"})  # the states in which a way carries requests

# A published figure stays until the measured one differs from it by more than both.
FIGURE_SHARE, FIGURE_MS = 0.1, 2.0
QUEUE_SHARE, QUEUE_MS = 0.33, 25.0
QUEUE_TAU_S = 2.0  # within which a region's queue delay is averaged

BELIEVED_MS = 600_000.0  # a figure beyond it says nothing

# How often a hold doubles at most, and how many holds of `failback_s` a failure is remembered.
DOUBLINGS_MAX = 4
REMEMBERED_HOLDS = 12.0


class PathView(Struct, frozen=True):
    """What one edge sees of one way to a region now. `relay` "": straight.

    `rtt_ms` follows the measured one, and changes only when that has changed by so much that it
    could matter; so does `extra_ms`, what losses and the relay count for beside it.
    """

    relay: str
    up: bool
    rtt_ms: float | None = None
    extra_ms: float = 0.0


def name_of(relay: str) -> str:
    """How people are told of a way."""
    return f"via {relay}" if relay else DIRECT


class Measured(Protocol):
    """What a monitor says of one way: `topology.overlay.monitor.Estimate`."""

    @property
    def rtt_ms(self) -> float | None: ...
    @property
    def smoothed_ms(self) -> float | None: ...
    @property
    def jitter_ms(self) -> float | None: ...
    @property
    def loss_out(self) -> float | None: ...
    @property
    def loss_back(self) -> float | None: ...
    @property
    def state(self) -> str: ...
    @property
    def why(self) -> str: ...


class PathChange(Struct, frozen=True):
    """Requests to a region take another way. `before`, `after`: "direct" or "via x"; "": none."""

    at_s: float  # Unix time, as the caller told it
    region: str
    before: str
    after: str
    why: str


class RegionPaths(Struct, frozen=True):
    """The ways to one region in the order of use. `why`: relay -> why it is where it is."""

    views: tuple[PathView, ...]
    why: dict[str, str]
    changed: PathChange | None = None
    queue_ms: float = 0.0  # the region's, averaged

    @property
    def first(self) -> PathView | None:
        """The way that requests take; None: none is up."""
        return self.views[0] if self.views and self.views[0].up else None

    @property
    def rtt_ms(self) -> float | None:
        return self.first.rtt_ms if self.first is not None else None


class Choice:
    """Keeps, for one edge worker, the order of its ways to each region, and says why it is so."""

    def __init__(self, rules: PathPolicy | None = None) -> None:
        self._rules = rules or PathPolicy()
        self._regions: dict[str, _Region] = {}

    def use(self, rules: PathPolicy) -> None:
        """Follow a new policy. What is in order stays so until it is measured otherwise."""
        self._rules = rules

    def keep(self, regions: Iterable[str]) -> None:
        """Forget every region but these."""
        kept = set(regions)
        self._regions = {r: held for r, held in self._regions.items() if r in kept}

    def advance(
        self,
        region: str,
        estimates: Mapping[str, Measured],
        queue_ms: float,
        now: float,
        wall_s: float = 0.0,
    ) -> RegionPaths:
        """Take what is measured at `now` (seconds, never going back) of each way, by its relay.

        `estimates` names all the ways that there are: one that it leaves out is forgotten.
        `queue_ms` is how long the region said that requests wait there. `wall_s` is the Unix time
        that a change is said to be at.
        """
        held = self._regions.get(region)
        if held is None:
            held = self._regions[region] = _Region()
        held.ways = {relay: held.ways.get(relay) or _Way() for relay in estimates}
        fresh = [r for r, e in estimates.items() if held.ways[r].take(e, bool(r), now, self._rules)]
        seen = {relay: way.score(estimates[relay], now) for relay, way in held.ways.items()}
        held.order(seen, fresh, now, self._rules)
        held.take_queue(queue_ms, now)
        order = usable(held.merit, seen)
        return RegionPaths(
            views=tuple(held.ways[relay].published(relay) for relay in order),
            why=words.reasons(order, seen),
            changed=held.changed(region, order, seen, wall_s),
            queue_ms=held.queue_shown_ms,
        )


class _Way:
    """What is remembered of one way."""

    __slots__ = (
        "barred_s", "failed_s", "failures", "held_s", "lost_ms", "ms", "returned", "rtt_ms",
        "settled", "since_s", "up", "view",
    )  # fmt: skip

    def __init__(self) -> None:
        self.up = False
        self.since_s = 0.0  # since when it is up
        self.ms: float | None = None  # its score, and of that
        self.rtt_ms = self.lost_ms = 0.0
        self.settled = False  # its place is by a measurement that may be trusted
        self.failures = 0  # deaths, and times that it was left: those that are remembered
        self.failed_s = -inf  # the last one
        self.held_s = -inf  # it was dead: not preferred before
        self.barred_s = -inf  # it was left: wins no place before
        self.returned = False  # it was held until now
        self.view: PathView | None = None

    def take(self, estimate: Measured, relayed: bool, now: float, rules: PathPolicy) -> bool:
        """Take a measurement. Returns whether its place is to be found by its score alone: when
        it has the first one, and once more when it has lived for a while, since the first may be
        of a process that was just beginning."""
        up = estimate.state in UP
        if up and not self.up:
            self.since_s = now
            if self.failures:
                self.held_s = now + self.hold_s(rules)
        elif self.up and not up:
            self.fail(now, rules)
        self.up = up
        rtt_ms = _distance_ms(estimate)
        if not up or rtt_ms is None:
            return False
        new = self.ms is None
        lost_ms = loss_ms(
            rtt_ms, estimate.jitter_ms or 0.0, estimate.loss_out or 0.0, estimate.loss_back or 0.0
        )
        self.rtt_ms = rtt_ms
        self.lost_ms = min(lost_ms, BELIEVED_MS) if lost_ms >= 0.0 else 0.0
        self.ms = score_ms(rtt_ms, self.lost_ms, relayed, rules)
        settles = not self.settled and now - self.since_s >= rules.failback_s
        self.settled = self.settled or settles
        return new or settles

    def fail(self, now: float, rules: PathPolicy) -> None:
        """It died, or was left for a better one."""
        remembered_s = REMEMBERED_HOLDS * rules.failback_s
        if remembered_s > 0.0 and isfinite(self.failed_s):
            self.failures -= min(self.failures, int((now - self.failed_s) / remembered_s))
        self.failed_s = now
        self.failures = min(self.failures + 1, DOUBLINGS_MAX + 1)

    def hold_s(self, rules: PathPolicy) -> float:
        return rules.failback_s * float(2 ** max(0, self.failures - 1))

    def score(self, estimate: Measured, now: float) -> Score:
        held, barred = now < self.held_s, now < self.barred_s
        until_s = self.held_s if held else self.barred_s
        return Score(
            ms=self.ms,
            up=self.up,
            since_s=self.since_s,
            held=held,
            barred=barred,
            rtt_ms=self.rtt_ms,
            lost_ms=self.lost_ms,
            waits_s=until_s - now if held or barred else 0.0,
            state=estimate.state,
            why=estimate.why,
        )

    def published(self, relay: str) -> PathView:
        """The same figures until one has changed by what matters."""
        old = self.view
        rtt_ms = old.rtt_ms if old is not None else None
        extra_ms = old.extra_ms if old is not None else 0.0
        if self.ms is not None:
            extra = self.ms - self.rtt_ms
            if rtt_ms is None or _differs(extra, extra_ms, rtt_ms + extra_ms):
                extra_ms = round(extra, 2)
            if rtt_ms is None or _differs(self.rtt_ms, rtt_ms, rtt_ms):
                rtt_ms = round(self.rtt_ms, 2)
        view = PathView(relay, self.up, rtt_ms, extra_ms)
        if old is None or view != old:
            self.view = old = view
        return old


def _distance_ms(estimate: Measured) -> float | None:
    """What a way takes: the least of late, or, where that is over, what it takes at the least now:
    a way that became longer is not believed for ten seconds more to be as short as it was."""
    least_ms, smoothed_ms = estimate.rtt_ms, estimate.smoothed_ms
    if least_ms is None or not 0.0 <= least_ms <= BELIEVED_MS:
        return None
    if smoothed_ms is None or estimate.jitter_ms is None:
        return least_ms
    steady_ms = smoothed_ms - 2.0 * estimate.jitter_ms
    return max(least_ms, steady_ms) if steady_ms <= BELIEVED_MS else least_ms


def _differs(new_ms: float, shown_ms: float, of_ms: float) -> bool:
    return abs(new_ms - shown_ms) > max(FIGURE_MS, FIGURE_SHARE * of_ms)


class _Region:
    """The ways to one region."""

    __slots__ = ("first", "merit", "queue_at_s", "queue_ms", "queue_shown_ms", "was_held", "ways")

    def __init__(self) -> None:
        self.merit: tuple[str, ...] = ()
        self.ways: dict[str, _Way] = {}
        self.first: str | None = None  # the way in use; None: none
        self.was_held: frozenset[str] = frozenset()
        self.queue_ms = self.queue_shown_ms = 0.0
        self.queue_at_s: float | None = None

    def order(
        self, seen: Mapping[str, Score], fresh: Sequence[str], now: float, rules: PathPolicy
    ) -> None:
        """The new order of merit. Whoever is left for a better one wins no place for a while."""
        before = with_new([relay for relay in self.merit if relay in seen], seen, rules)
        for relay in fresh:
            before = placed(before, relay, seen, rules)
        self.merit = merit(before, seen, rules)
        if self.merit == before:
            return
        place = {relay: at for at, relay in enumerate(self.merit)}
        for at, relay in enumerate(before):
            passed = any(place[later] < place[relay] for later in before[at + 1 :])
            if passed and seen[relay].sound:
                left = self.ways[relay]
                left.fail(now, rules)
                left.barred_s = now + left.hold_s(rules)

    def changed(
        self, region: str, order: Sequence[str], seen: Mapping[str, Score], wall_s: float
    ) -> PathChange | None:
        """What has changed for requests, if anything."""
        was_held, self.was_held = self.was_held, frozenset(r for r in seen if seen[r].held)
        before, after = self.first, order[0] if order and seen[order[0]].up else None
        if after == before:
            return None
        self.first = after
        why = words.change(before, after in was_held, order, seen)
        names = ["" if way is None else name_of(way) for way in (before, after)]
        return PathChange(wall_s, region, names[0], names[1], why)

    def take_queue(self, queue_ms: float, now: float) -> None:
        """An average, and of that what is published, which changes rarely: a region that every
        edge flees from and returns to at once gains nothing."""
        if not 0.0 <= queue_ms <= BELIEVED_MS:
            return
        past_s = max(0.0, now - self.queue_at_s) if self.queue_at_s is not None else inf
        self.queue_at_s = now
        part = past_s / (past_s + QUEUE_TAU_S) if past_s < inf else 1.0
        self.queue_ms += part * (queue_ms - self.queue_ms)
        off_ms = abs(self.queue_ms - self.queue_shown_ms)
        if off_ms > max(QUEUE_MS, QUEUE_SHARE * self.queue_shown_ms):
            self.queue_shown_ms = round(self.queue_ms, 1)
        elif self.queue_ms < 1.0:
            self.queue_shown_ms = 0.0

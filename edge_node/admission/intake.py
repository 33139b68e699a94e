"""What one region takes from this edge worker: level, throttle, limit and pace of it. Pure.

Whoever has something under way there counts it here, exactly once each way. Times in seconds of
one monotonic clock; where it jumps, estimates are lost and counts are not.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from random import Random
from typing import Literal, TypeAlias

from edge_node.admission.concurrency import Concurrency
from edge_node.admission.pacing import Drain, Pace
from edge_node.admission.throttle import Throttle
from topology.cursor import ALL_ADMITTED, TIERS, USERS, Tier
from topology.policy import OverloadPolicy

# Why a request may not go to a region now; "": it may.
Hindrance: TypeAlias = Literal["", "limit", "level", "throttle", "pace"]
# How an exchange ended. `refused`: the region said that it is full. `failed`: by its fault, or its
# way's. `faulty`: by the request's own. `cancelled`: by us, since nobody waited, or another won.
Outcome: TypeAlias = Literal["ok", "refused", "failed", "faulty", "cancelled"]

HINDRANCES: tuple[Hindrance, ...] = ("level", "throttle", "limit", "pace")
# A tier with nothing under way in a region that would refuse it may try with one so often: each
# one that is refused doubles the gap, one that is taken ends it.
PROBE_S = 0.5
PROBE_MOST_S = 4.0
# Whoever waits is asked for often, and shall not draw until it wins.
_DRAW_S = 0.02
_CALM_S = 1.0  # without a refusal: a throttle may be lifted at once
_NEWS_S = 1.0  # so long what a region said holds; then its level rises, step by step
_RISE_S = 0.25
_RISE = USERS // 2  # places
_RANK = {tier: rank for rank, tier in enumerate(TIERS)}
_NEWEST = 0.2  # the weight of one delay
_WAIT_MOST_S = 60.0
_NEVER = float("-inf")


class Lane:
    """One tier's part of an intake."""

    __slots__ = (
        "bypass",
        "draw_at",
        "first",
        "gap_s",
        "hindered",
        "own",
        "past",
        "probe_at",
        "refused_at",
        "share",
        "throttle",
        "tier",
    )

    def __init__(self, tier: Tier, throttle: Throttle) -> None:
        self.tier: Tier = tier
        self.throttle = throttle
        self.first = _RANK[tier] * USERS  # cursor of the tier's first place,
        self.past = self.first + USERS  # and past its last
        self.bypass = tier == "vip"  # the region lets it go first: the limit is for others
        self.own = 0  # under way
        self.share = 1.0  # of the limit
        self.refused_at = _NEVER  # when one was, last
        self.probe_at = 0.0  # no probe before
        self.gap_s = PROBE_S  # between probes
        self.draw_at = 0.0  # nobody who is asked for again has another draw before
        self.hindered = dict.fromkeys(HINDRANCES, 0)  # requests, ever


class Intake:
    """Of one region. `room`: called when somebody was hindered and there may be room now. `said`:
    the level that it told last."""

    __slots__ = (
        "_level_at",
        "_pace",
        "_queue_at",
        "_queue_s",
        "_rng",
        "_room",
        "_target_s",
        "concurrency",
        "drain",
        "in_flight",
        "lanes",
        "most",
        "said",
        "wanted",
    )

    def __init__(self, policy: OverloadPolicy, rng: Random, room: Callable[[], None]) -> None:
        self._rng = rng
        self._room = room
        self.said, self._level_at = ALL_ADMITTED, 0.0
        self._queue_s, self._queue_at = 0.0, _NEVER
        self.in_flight = 0
        self.wanted = False  # somebody was hindered since `room` was called
        self.drain = Drain()
        self._pace = Pace()
        target_s = policy.queue_target_ms / 1000
        least, most = policy.concurrency_min, policy.concurrency_max
        self.concurrency = Concurrency(least, most, target_s)
        k, window_s = policy.throttle_k, policy.throttle_window_s
        self.lanes = {tier: Lane(tier, Throttle(k, window_s)) for tier in TIERS}
        self.use(policy)

    def use(self, policy: OverloadPolicy) -> None:
        self._target_s = policy.queue_target_ms / 1000
        self.most = max(policy.concurrency_min, policy.concurrency_max)
        self.concurrency.use(policy.concurrency_min, self.most, self._target_s)
        for tier, lane in self.lanes.items():
            lane.throttle.use(policy.throttle_k, policy.throttle_window_s)
            lane.share = getattr(policy.tiers, tier).share

    # Asking

    def judge(self, tier: Tier, cursor: int, now: float, *, again: bool = False) -> Hindrance:
        """See `Gate.judge`."""
        lane = self.lanes[tier]
        hindrance = self._hindrance(lane, cursor, now, again=again)
        if hindrance:
            self.wanted = True
            if hindrance == "limit":
                self.concurrency.pressed = True
            if not again:
                lane.hindered[hindrance] += 1
        return hindrance

    def _hindrance(self, lane: Lane, cursor: int, now: float, *, again: bool) -> Hindrance:
        if cursor >= self.said and cursor >= self.level(now):
            return "" if self._probes(lane, now) else "level"
        throttle = lane.throttle
        if throttle.troubled and self._holds(throttle, lane, now, again=again):
            return "" if self._probes(lane, now) else "throttle"
        if not lane.own and not 0 <= now - lane.refused_at < lane.gap_s:
            return ""  # one of each tier may always be there
        if self._over(lane) > 0:
            return "limit"
        pace = self._pace
        if lane.bypass or pace.drained_at <= now or not pace.wait_s(now) or not self.full(now):
            return ""
        return "pace"

    def _over(self, lane: Lane) -> float:
        """How many more than may be there would be there, with another one."""
        if lane.bypass:
            return self.in_flight + 1 - self.most
        concurrency = self.concurrency
        limit = concurrency.limit
        part = limit * lane.share
        own = lane.own + 1 - (part if part > 1.0 else 1.0)
        whole = self.in_flight + 1 + concurrency.lost - limit
        return own if own > whole else whole

    def _holds(self, throttle: Throttle, lane: Lane, now: float, *, again: bool) -> bool:
        if again and 0 < lane.draw_at - now <= _DRAW_S:
            return True
        if not throttle.holds(now, self._rng):
            return False
        lane.draw_at = now + _DRAW_S
        if not again:
            throttle.held(now)
        return True

    def _probes(self, lane: Lane, now: float) -> bool:
        """Whether this one is let in to find out how things stand."""
        if lane.own or 0 < lane.probe_at - now <= PROBE_MOST_S:
            return False
        lane.probe_at = now + lane.gap_s
        return True

    def level(self, now: float) -> int:
        """What the region admits, as far as is known: it rises when nothing is heard."""
        if self.said >= ALL_ADMITTED:
            return ALL_ADMITTED
        silent_s = now - self._level_at
        if silent_s < 0:
            self._level_at = now
        if silent_s < _NEWS_S:
            return self.said
        return min(ALL_ADMITTED, self.said + _RISE * (1 + int((silent_s - _NEWS_S) / _RISE_S)))

    def queue_s(self, now: float) -> float:
        return self._queue_s if 0 <= now - self._queue_at < _NEWS_S else 0.0

    def full(self, now: float) -> bool:
        """Whether the region said so lately."""
        return self.queue_s(now) > self._target_s or self.level(now) < ALL_ADMITTED

    def throttled(self, tier: Tier, now: float) -> float:
        """Share of requests that are held back."""
        throttle = self.lanes[tier].throttle
        return throttle.share(now) if throttle.troubled else 0.0

    def limit(self, tier: Tier) -> int:
        """How many of a tier this worker may have there."""
        lane = self.lanes[tier]
        limit = self.most if lane.bypass else self.concurrency.limit
        return max(1, int(limit * lane.share))

    def wait_s(self, tier: Tier, now: float) -> float:
        """See `Gate.wait_s`."""
        lane = self.lanes[tier]
        wait_s = 0.0
        if self.level(now) <= lane.first or self.throttled(tier, now) > 0.5:
            wait_s = max(PROBE_S, self.queue_s(now) - self._target_s)
            if not lane.own:
                wait_s = min(wait_s, max(0.0, lane.probe_at - now))
        refused_s = now - lane.refused_at
        if lane.own or 0 <= refused_s < lane.gap_s:
            over = self._over(lane)
            if over > 0:
                wait_s = max(wait_s, self._draining_s(ceil(over), now))
            if not lane.bypass and self.full(now):
                wait_s = max(wait_s, self._pace.wait_s(now))
            if not lane.own:
                wait_s = min(wait_s, lane.gap_s - refused_s)
        return min(_WAIT_MOST_S, wait_s)

    def _draining_s(self, count: int, now: float) -> float:
        """Until so many have ended."""
        rate = self.drain.per_s(now)
        return count / rate if rate > 0 else self.queue_s(now) or PROBE_S

    # Being told

    def sent(self, tier: Tier, cost: float, now: float) -> None:
        """A request goes there, whatever `judge` said. `cost` is in tokens."""
        self.in_flight = there = self.in_flight + 1
        lane = self.lanes[tier]
        lane.own += 1
        if there > self.concurrency.peak:
            self.concurrency.sent(there)
        lane.throttle.sent(now)
        if self._queue_s > self._target_s or self.said < ALL_ADMITTED:
            self._pace.spend(cost, self.drain.tokens_per_s(now), now)

    def told(
        self, tier: Tier, level: int | None, queue_s: float | None, now: float, load: float = 0.0
    ) -> None:
        """What it says: what it admits, and how long one of this tier waits there."""
        rose = False
        if level is not None:
            rose = level > self.said
            self.said, self._level_at = level, now
        if queue_s is not None and tier != "vip":  # VIP goes first: its wait says nothing of others
            if not queue_s <= _WAIT_MOST_S:  # NaN too: whatever a region says, it is forgotten
                queue_s = _WAIT_MOST_S
            self.concurrency.waits(queue_s, load)
            fresh = 0 <= now - self._queue_at < _NEWS_S
            self._queue_s += (_NEWEST if fresh else 1.0) * (queue_s - self._queue_s)
            self._queue_at = now
        concurrency = self.concurrency
        if not concurrency.opened <= now < concurrency.closes:
            rose |= self._turned(now)
        if rose and self.wanted:
            self._call()

    def accepted(self, tier: Tier, level: int, queue_s: float, load: float, now: float) -> None:
        """It took one on."""
        lane = self.lanes[tier]
        throttle = lane.throttle
        if lane.gap_s > PROBE_S:
            lane.gap_s = PROBE_S
            lane.probe_at = min(lane.probe_at, now + PROBE_S)
        if throttle.troubled and level >= lane.past:
            calm = not 0 <= now - lane.refused_at < _CALM_S
            if calm and queue_s <= self._target_s:
                throttle.forget()
        concurrency = self.concurrency
        if lane.bypass and level == self.said and concurrency.opened <= now < concurrency.closes:
            self._level_at = now  # nothing else is new: the common case of a VIP
            return
        self.told(tier, level, queue_s, now, load)

    def ended(self, tier: Tier, cost: float, used: float, outcome: Outcome, now: float) -> None:
        """One is over. `cost` as when it was sent, `used` what it came to, in tokens; 0: the region
        did no work for it."""
        self.in_flight -= 1
        lane = self.lanes[tier]
        lane.own -= 1
        if outcome == "refused":
            lane.throttle.refused(now)
            lane.refused_at = now
            if not lane.own:
                lane.gap_s = min(PROBE_MOST_S, 2 * lane.gap_s)
                lane.probe_at = now + lane.gap_s
            if tier != "vip":
                self.concurrency.refused()
        if used > 0:
            self.drain.add(used, now)
        if cost != used and self._pace.drained_at > now and self._pace.wait_s(now):
            self._pace.settle(used - cost, self.drain.tokens_per_s(now), now)
        concurrency = self.concurrency
        if not concurrency.opened <= now < concurrency.closes:
            self._turned(now)
        if self.wanted:
            self._call()

    def _turned(self, now: float) -> bool:
        concurrency = self.concurrency
        if not concurrency.due(now):
            return False
        return concurrency.turn(now, self.in_flight, self.drain.per_s(now))

    def _call(self) -> None:
        self.wanted = False
        self._room()

"""Where requests of each tier begin on the degradation ladder, and why. Pure.

The written policy is docs/ladder.md. *Pressure* of a tier is the larger of two figures:

- how long one of its requests would have to wait for room now, against how long it may
  (`TierPolicy.wait_ms`);
- how many of those that looked for room within `WINDOW_S` found none in time, as a share.

Requests that find room at once do so whatever the standing, and count as such; so a tier that is
being refused is seen to find room again as soon as there is some, and nothing that the ladder does
feeds back into what moves it.

A rung whose `enter` is above 0 is *entered* once the pressure was that high for `enter_s`, and left
once it was below `leave` for `leave_s`. A tier stands at the lowest rung that is entered, else at
the top. `now` is a monotonic time in seconds; after a clock that went back, what was measured so
far counts for nothing, and standings stay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct

from topology.cursor import TIERS, Tier
from topology.policy import LADDER, RungPolicy, TiersPolicy

Quality: TypeAlias = Literal[
    "full", "other-region", "queued", "quantised", "edge-model", "stale", "refused"
]
QUALITIES: tuple[Quality, ...] = (
    "full", "other-region", "queued", "quantised", "edge-model", "stale", "refused",
)  # fmt: skip

WINDOW_S = 2.0
STEP_S = 0.1  # between two looks at the figures
PRESSURE_MAX = 10.0
FEW = 10  # requests in the window: below that, their share is believed in proportion


class Standing(Struct, frozen=True):
    """Of one tier. `since`: when it came to stand there. `recent`: requests served so, per s."""

    tier: Tier
    quality: Quality
    since: float
    pressure: float
    why: str
    recent: Mapping[Quality, float]


class Counts:
    """Of one tier, ever."""

    __slots__ = ("by_quality", "met", "unmet")

    def __init__(self) -> None:
        self.by_quality = dict.fromkeys(QUALITIES, 0)
        self.met = 0  # those that found room, at once or in time
        self.unmet = 0  # those that looked for room and did not find it in time


class _Sample(Struct, frozen=True):
    at: float
    met: int
    unmet: int
    by_quality: tuple[int, ...]


class _Rung:
    __slots__ = ("entered", "place", "policy", "since")

    def __init__(self, place: int, policy: RungPolicy) -> None:
        self.place = place
        self.policy = policy
        self.entered = False
        self.since: float | None = None  # when the pressure began to say that this should change

    def look(self, pressure: float, now: float) -> None:
        policy = self.policy
        turns = pressure < policy.leave if self.entered else pressure >= policy.enter
        if not turns:
            self.since = None
            return
        if self.since is None or now < self.since:
            self.since = now
        if now - self.since >= (policy.leave_s if self.entered else policy.enter_s):
            self.entered = not self.entered
            self.since = None


class TierLadder:
    """The ladder for requests of one tier. `place` is where they begin, in `QUALITIES`."""

    def __init__(self, tier: Tier, now: float = 0.0) -> None:
        self.tier = tier
        self.counts = Counts()
        self.place = 0
        self.since = now
        self.pressure = 0.0
        self.rungs: frozenset[Quality] = frozenset(QUALITIES)
        self._why = "nothing has been asked yet"
        self._rungs: list[_Rung] = []
        self._samples: deque[_Sample] = deque()
        self.use(LADDER)

    @property
    def quality(self) -> Quality:
        return QUALITIES[self.place]

    def use(self, ladder: Sequence[RungPolicy]) -> None:
        """Go by this ladder from now on. What is entered stays so, where it is still there."""
        own = [rung for rung in ladder if self.tier in rung.tiers]
        entered = {QUALITIES[rung.place] for rung in self._rungs if rung.entered}
        self.rungs = frozenset(rung.quality for rung in own)
        self._rungs = [_Rung(QUALITIES.index(rung.quality), rung) for rung in own if rung.enter > 0]
        for rung in self._rungs:
            rung.entered = QUALITIES[rung.place] in entered
        self._stand(self.since)

    def count(self, quality: Quality) -> None:
        """A request was served so."""
        self.counts.by_quality[quality] += 1

    def due(self, now: float) -> bool:
        """Whether `look` has anything to look at."""
        samples = self._samples
        return not samples or not 0 <= now - samples[-1].at < STEP_S

    def look(self, wait: float, now: float) -> None:
        """Work out the pressure, and where it leads. `wait`: for room now, against how long a
        request of this tier may wait."""
        samples, counts = self._samples, self.counts
        if samples and now < samples[-1].at:
            samples.clear()
        samples.append(_Sample(now, counts.met, counts.unmet, tuple(counts.by_quality.values())))
        while len(samples) > 2 and samples[1].at <= now - WINDOW_S:
            samples.popleft()
        first = samples[0]
        met, unmet = counts.met - first.met, counts.unmet - first.unmet
        share = unmet / max(met + unmet, FEW)
        wait = min(wait, PRESSURE_MAX) if wait > 0 else 0.0
        self.pressure = max(wait, share)
        if self.pressure == 0:
            self._why = "there is room"
        elif wait >= share:
            self._why = f"for room it would wait {wait:.0%} of what it may"
        else:
            self._why = f"{share:.0%} of what looked for room found none in time"
        for rung in self._rungs:
            rung.look(self.pressure, now)
        self._stand(now)

    def standing(self) -> Standing:
        samples = self._samples
        recent: dict[Quality, float] = {}
        if len(samples) > 1 and samples[-1].at > samples[0].at:
            for_s = samples[-1].at - samples[0].at
            pairs = zip(samples[0].by_quality, samples[-1].by_quality, strict=True)
            rates = ((after - before) / for_s for before, after in pairs)
            recent = {q: rate for q, rate in zip(QUALITIES, rates, strict=True) if rate > 0}
        return Standing(self.tier, self.quality, self.since, self.pressure, self._why, recent)

    def _stand(self, now: float) -> None:
        place = max((rung.place for rung in self._rungs if rung.entered), default=0)
        if place != self.place:
            self.place, self.since = place, now


def wait_ms(tier: Tier, tiers: TiersPolicy) -> float:
    """How long a request of this tier may wait."""
    policy = {"vip": tiers.vip, "standard": tiers.standard, "batch": tiers.batch}[tier]
    return policy.wait_ms


def ladders(now: float) -> dict[Tier, TierLadder]:
    return {tier: TierLadder(tier, now) for tier in TIERS}

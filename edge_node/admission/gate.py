"""What may be sent to a region now, and what the region made of what was sent. Pure.

The one place where the edge's view of each region's room comes together. Whoever wants to send
asks `judge`; every exchange is told of with `sent`, then `accepted` when the region takes it on,
and `ended` exactly once. Times are in seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import Literal, TypeAlias

from msgspec import Struct

from topology.cursor import ALL_ADMITTED, Tier
from topology.overlay.frames import Accept
from topology.policy import OverloadPolicy

# Why a request may not go to a region now; "": it may.
Hindrance: TypeAlias = Literal["", "limit", "level", "throttle", "pace"]
# How an exchange ended. `refused`: the region said that it is full. `failed`: by its fault, or its
# way's. `faulty`: by the request's own. `cancelled`: by us, since nobody waited, or another won.
Outcome: TypeAlias = Literal["ok", "refused", "failed", "faulty", "cancelled"]


# Levels, paces and throttles also give way by time alone, when nothing that could tell of it
# happens: whoever waits asks again so often, whether `on_room` was called or not.
LOOK_AGAIN_S = 0.1


class Room(Struct, frozen=True):
    """How a region stands for one tier, as this worker sees it: for the ladder and for people."""

    limit: int  # of this worker's requests there, for this tier
    in_flight: int  # of this worker there, of all tiers
    own: int  # of this tier
    level: int  # what the region admits: `topology.cursor`; ALL_ADMITTED: all
    queue_ms: float  # that requests wait there, as it said lately; 0: nothing was said lately
    throttled: float  # share of requests of this tier that are held back here, 0 to 1
    drain_per_s: float  # requests of this worker that end there, lately


class Gate:
    """Of one edge worker.

    How to use it. For a new request: `judge(...)` for each region that it may go to, best first;
    "": send it (`GatedUpstream.open` calls `sent` itself). Else it is hindered there, and another
    region may be tried, or it may wait. `judge` takes nothing and promises nothing: between it and
    `open`, do not await. Of a request that has been judged for that region before, say
    `again=True`: it is not counted as another request by the throttle.

    `on_room` is called, in the middle of what others do (so only schedule something there), when
    somebody was hindered since it was last called, and now there may be room. It is not called
    for what time alone changes: see `LOOK_AGAIN_S`.
    """

    def __init__(self, rng: Random | None = None) -> None:
        self._rng = rng or Random(0)
        self._policy = OverloadPolicy()
        self.on_room: Callable[[], None] = _nobody

    def use(self, policy: OverloadPolicy) -> None:
        """Go by this policy from now on. `protect: false`: nobody is hindered."""
        self._policy = policy

    def keep(self, regions: Collection[str]) -> None:
        """Forget the others, as soon as nothing is under way there."""

    # Asking

    def judge(
        self,
        region: str,
        tier: Tier,
        cursor: int,
        cost: float,
        now: float,
        *,
        again: bool = False,
    ) -> Hindrance:
        """Whether a request may be sent there now. `cost`: in tokens, from `estimate`."""
        return ""

    def estimate(self, model: str, body_bytes: int, max_tokens: int | None = None) -> float:
        """What a request will come to, in tokens of input and answer, as far as can be told."""
        return 0.0

    def wait_s(self, region: str, tier: Tier, now: float) -> float:
        """When a request of this tier that nobody waits before will be let in, honestly: 0: now.
        For one with `n` before it, add `n / drain_per_s`."""
        return 0.0

    def drain_per_s(self, region: str, now: float) -> float:
        """Requests of this worker that end there in a second, lately; 0: nothing is known."""
        return 0.0

    def room(self, region: str, tier: Tier, now: float) -> Room:
        """Changes nothing."""
        return Room(self._policy.concurrency_max, 0, 0, ALL_ADMITTED, 0.0, 0.0, 0.0)

    # Being told

    def sent(self, region: str, tier: Tier, cost: float, now: float) -> None:
        """A request goes there, whatever `judge` said."""

    def accepted(self, region: str, frame: Accept, now: float) -> None:
        """The region took it on."""

    def ended(
        self, region: str, tier: Tier, cost: float, used: float, outcome: Outcome, now: float
    ) -> None:
        """It is over. `cost` as when it was sent, `used` what it came to, in tokens."""

    def told(self, region: str, level: int | None, queue_ms: float | None, now: float) -> None:
        """What the region said, with END or ERROR, of what it admits and how long requests wait."""


def _nobody() -> None:
    """Nobody waits for room."""

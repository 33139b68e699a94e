"""What may be sent to each region now, and what each made of what was sent. Pure.

The one place where the edge's view of the regions' room comes together. Whoever wants to send
asks `judge`; `edge_node.admission.gated` tells of every exchange. Times are in seconds of one
monotonic clock. Why it decides as it does: docs/decisions/0018-adaptive-concurrency.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from random import Random

from msgspec import Struct

from edge_node.admission.intake import Hindrance, Intake
from edge_node.admission.limiter import AnswerTokens
from runtime.metrics import Sample
from topology.cursor import TIERS, Tier
from topology.policy import OverloadPolicy

__all__ = ["LOOK_AGAIN_S", "Gate", "Hindrance", "Room"]

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
    "": send it (`GatedUpstream` counts it). Else it is hindered there, and another
    region may be tried, or it may wait. `judge` takes nothing and promises nothing: between it and
    `open`, do not await. Of a request that has been judged for that region before, say
    `again=True`: it is not counted as another request by throttle and metrics.

    `on_room` is called, in the middle of what others do (so only schedule something there), when
    somebody was hindered since it was last called, and now there may be room. It is not called
    for what time alone changes: see `LOOK_AGAIN_S`.
    """

    def __init__(self, rng: Random | None = None) -> None:
        self._rng = rng or Random(0)
        self._policy = OverloadPolicy()
        self._protects = True
        self._intakes: dict[str, Intake] = {}
        self.answers = AnswerTokens()
        self.on_room: Callable[[], None] = _nobody

    def use(self, policy: OverloadPolicy) -> None:
        """Go by this policy from now on. `protect: false`: nobody is hindered."""
        self._protects = policy.protect
        if policy != self._policy:
            self._policy = policy
            for intake in self._intakes.values():
                intake.use(policy)

    def keep(self, regions: Collection[str]) -> None:
        """Forget the others. What is under way there counts for itself until it ends."""
        for name in self._intakes.keys() - set(regions):
            del self._intakes[name]

    def intake(self, region: str) -> Intake:
        """What is known of it, for those who tell; nothing yet: a new one."""
        intake = self._intakes.get(region)
        if intake is None:
            intake = self._intakes[region] = Intake(self._policy, self._rng, self._told_of_room)
        return intake

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
        """Whether a request may be sent there now. `cost`, in tokens from `estimate`, delays those
        that come after it: whoever is next goes whole, however large."""
        if not self._protects:
            return ""
        intake = self._intakes.get(region) or self.intake(region)
        return intake.judge(tier, cursor, now, again=again)

    def estimate(self, model: str, body_bytes: int, max_tokens: int | None = None) -> float:
        """What a request will come to, in tokens of input and answer, as far as can be told."""
        return self.answers.cost(model, body_bytes, max_tokens)

    def wait_s(self, region: str, tier: Tier, now: float) -> float:
        """When a request of this tier that nobody waits before will be let in, honestly: 0: now.
        For one with `n` before it, add `n / drain_per_s`. 60 at most."""
        intake = self._intakes.get(region)
        return intake.wait_s(tier, now) if intake is not None and self._protects else 0.0

    def drain_per_s(self, region: str, now: float) -> float:
        """Requests of this worker that end there in a second, lately; 0: nothing is known."""
        intake = self._intakes.get(region)
        return intake.drain.per_s(now) if intake is not None else 0.0

    def room(self, region: str, tier: Tier, now: float) -> Room:
        """How it stands there."""
        intake = self.intake(region)
        return Room(
            intake.limit(tier),
            intake.in_flight,
            intake.lanes[tier].own,
            intake.level(now),
            intake.queue_s(now) * 1000,
            intake.throttled(tier, now),
            intake.drain.per_s(now),
        )

    def samples(self, now: float) -> Iterable[Sample]:
        name = "tradewind_edge_gate_"
        for region, intake in self._intakes.items():
            of = {"region": region}
            limit = int(intake.concurrency.limit)
            yield Sample(name + "limit", "Requests there at once, of this worker.", limit, of)
            yield Sample(name + "level", "What the region admits.", intake.level(now), of)
            queue_s = intake.queue_s(now)
            yield Sample(name + "queue_seconds", "That one waits there, it said.", queue_s, of)
            drain = intake.drain.per_s(now)
            yield Sample(name + "drain_per_s", "Requests of this worker that end.", drain, of)
            for tier in TIERS:
                lane, by = intake.lanes[tier], {"region": region, "tier": tier}
                yield Sample(name + "in_flight", "Requests under way there.", lane.own, by)
                held = intake.throttled(tier, now)
                yield Sample(name + "throttled_ratio", "Share that is held back.", held, by)
                for reason, count in lane.hindered.items():
                    yield Sample(
                        name + "hindered_total",
                        "Requests that could not be sent there at once, and why.",
                        count,
                        {**by, "reason": reason},
                    )

    def _told_of_room(self) -> None:
        self.on_room()


def _nobody() -> None:
    """Nobody waits for room."""

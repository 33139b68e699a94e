"""What may be sent to a region now, and what the region made of what was sent. Pure.

The one place where the edge's view of each region's room comes together. Whoever wants to send
asks `judge`; every exchange is told of with `sent`, then `accepted` when the region takes it on,
and `ended` exactly once. Times are in seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from topology.cursor import Tier
from topology.overlay.frames import Accept
from topology.policy import OverloadPolicy

# Why a request may not go to a region now; "": it may.
Hindrance: TypeAlias = Literal["", "limit", "level", "throttle", "pace"]
# How an exchange ended. `refused`: the region said that it is full. `failed`: by its fault, or its
# way's. `faulty`: by the request's own. `cancelled`: by us, since nobody waited, or another won.
Outcome: TypeAlias = Literal["ok", "refused", "failed", "faulty", "cancelled"]


class Gate:
    """Of one edge worker."""

    def __init__(self) -> None:
        self._policy = OverloadPolicy()
        self.on_room: Callable[[], None] = _nobody  # called when there may be room again

    def use(self, policy: OverloadPolicy) -> None:
        """Go by this policy from now on."""
        self._policy = policy

    def judge(self, region: str, tier: Tier, cursor: int, cost: float, now: float) -> Hindrance:
        """Whether a request may be sent there now. `cost`: in tokens, as far as can be told."""
        return ""

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

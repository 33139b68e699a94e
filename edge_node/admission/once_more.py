"""Requests that were let in and came to nothing, let in once more."""

from __future__ import annotations

import asyncio

import msgspec

from edge_node.admission.entry import Entry
from edge_node.errors import AttemptsExhausted
from edge_node.forward.attempt import Ask
from edge_node.forward.attempts import Attempts
from edge_node.forward.blame import is_death
from edge_node.forward.forwarder import Forwarder
from edge_node.inflight import PASSING, Cause, Flight
from topology.cursor import Tier, tier_of
from topology.overlay.errors import RegionFailure
from topology.overlay.frames import Failure

PAUSE_MS = 100  # before a region is asked again that said no time
NEVER = float("inf")


class OnceMore:
    """Of one edge worker."""

    def __init__(self, entry: Entry, forwarder: Forwarder) -> None:
        self._entry = entry
        self._forwarder = forwarder

    async def let_in(
        self, ask: Ask, attempts: Attempts, error: AttemptsExhausted, flight: Flight
    ) -> Attempts | None:
        """Let one in anew whose way died before it was given anything, while no other region had
        room; or a VIP whom the regions refused, if the retry budget pays. None: neither is so.
        With the first time, there are no more attempts than for any other. Raises `Overloaded`."""
        entry, last, tier = self._entry, error.last, tier_of(ask.priority)
        left = ask.attempts - len(attempts.tried)
        if error.streaming or attempts.text or left <= 0:
            return None
        flight.stage(NEVER, Cause.SILENCE)  # no region is to blame while it waits
        if isinstance(last, RegionFailure) and last.failure.code == "overloaded":
            if tier != "vip" or not last.retryable or not self._pays():
                return None
            await self._pause(last.failure, tier, flight)
        elif not is_death(last):
            return None
        ask, decision = msgspec.structs.replace(ask, attempts=left), entry.decide(ask)
        if not decision.candidates:
            return None
        return entry.at_once(ask, decision, flight) or await entry.admit(ask, decision, flight)

    def _pays(self) -> bool:
        if not self._forwarder.budget.spend(self._forwarder.now()):
            return False
        self._forwarder.figures.retried += 1
        return True

    async def _pause(self, failure: Failure, tier: Tier, flight: Flight) -> None:
        """Until it may succeed, as the region said, and no longer than it may wait."""
        left_s = flight.deadline - self._forwarder.now()
        asked_s = (failure.retry_after_ms or PAUSE_MS) / 1000
        try:
            await asyncio.sleep(max(0.0, min(asked_s, self._entry.wait_s.get(tier, 0.0), left_s)))
        except asyncio.CancelledError:
            if flight.cause not in PASSING:
                raise
            flight.carry_on()

"""Lets requests in to the regions: at once where there is room, else by the ladder.

A shell around `edge_node.admission.waiting` and `edge_node.admission.ladder`, which decide. Who
is let in has been sent when this returns, so that the gate has counted it before anybody else is
judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random
from typing import NoReturn

import msgspec

from edge_node.admission.comeback import Comeback
from edge_node.admission.gate import Hindrance
from edge_node.admission.ladder import QUALITIES, Quality, Standing, TierLadder, ladders, wait_ms
from edge_node.admission.waiting import Granted, WaitingRoom, Wish
from edge_node.errors import Overloaded
from edge_node.forward.attempt import Ask
from edge_node.forward.attempts import Attempts
from edge_node.forward.forwarder import Forwarder
from edge_node.forward.stand_in import stand_in
from edge_node.inflight import PASSING, Flight
from runtime.metrics import Sample
from topology.cursor import TIERS, Tier, tier_of
from topology.fair_queue import QueueFull
from topology.policy import OverloadPolicy
from topology.routing import Candidate, Decision
from topology.snapshot import Snapshot
from topology.wire.ladder_reports import StandingReport

TICK_S = 0.02  # how late room that comes with time is seen, and a wait that is over
QUANTISED, REFUSED = QUALITIES.index("quantised"), QUALITIES.index("refused")
# Why one is turned away, for people.
WHY = {
    "no_room": "no region has room",
    "too_long": "the wait for room would be too long",
    "too_late": "no region had room in time",
    "too_many": "too many wait already",
    "displaced": "too many wait, and others go first",
    "level": "the regions admit others first",
    "moved": "the region that had room serves it no more",
}


class _Waiter:
    """One that is not let in at once."""

    __slots__ = (
        "ask", "attempts", "decision", "flight", "future", "judged", "since", "why", "wish",
    )  # fmt: skip

    def __init__(
        self, ask: Ask, decision: Decision, flight: Flight, wish: Wish, since: float
    ) -> None:
        self.ask = ask
        self.decision = decision
        self.flight = flight
        self.wish = wish
        self.since = since
        self.attempts: Attempts | None = None  # once it is let in
        self.why = ""  # it is not let in: a key of `WHY`
        self.judged = False  # the gate has counted it
        self.future: asyncio.Future[None] | None = None  # while it waits

    def wake(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)


class Entry:
    """Of one edge worker. What it returns has been sent; read it to its end, and close it in any
    case. Use within one event loop."""

    def __init__(self, forwarder: Forwarder, rng: Random) -> None:
        self._forwarder = forwarder
        self._gate = forwarder.gate
        self._rng = rng
        self._policy = OverloadPolicy()
        self.wait_s: dict[Tier, float] = {}
        self.room = WaitingRoom(0)
        self.ladders = ladders(forwarder.now())
        self._waiters: dict[int, _Waiter] = {}
        self._count = 0
        self._comeback = Comeback()
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._waited_s: dict[Tier, float] = dict.fromkeys(TIERS, 0.0)
        self._refused: dict[tuple[Tier, str], int] = {}
        self._gate.on_room = self._room_again

    def use(self, snapshot: Snapshot) -> None:
        """Go by this snapshot's policy from now on; who waits, waits as it was."""
        self._policy = policy = snapshot.policy.overload
        self.wait_s = {tier: wait_ms(tier, policy.tiers) / 1000 for tier in TIERS}
        self.room.capacity = policy.waiting_max
        for ladder in self.ladders.values():
            ladder.use(snapshot.policy.ladder)

    def gave(self, tier: Tier, quality: Quality) -> None:
        """A request that was not let in was given this in the end."""
        self.ladders[tier].count(quality)

    # Requests

    def at_once(self, ask: Ask, decision: Decision, flight: Flight) -> Attempts | None:
        """The common case: there is room, and nobody waits for it. None: use `admit`."""
        tier = tier_of(ask.priority)
        ladder, candidates = self.ladders[tier], decision.candidates
        if self._waiters or ladder.place or not candidates:
            return None
        forwarder = self._forwarder
        if self._gate.judge(candidates[0].region, tier, ask.cursor, ask.cost, forwarder.now()):
            return None
        counts = ladder.counts
        counts.met += 1
        counts.by_quality["full"] += 1
        attempts = forwarder.begin(ask, decision, flight)
        attempts.send()
        return attempts

    async def admit(self, ask: Ask, decision: Decision, flight: Flight) -> Attempts:
        """Let it in as its tier's standing says, after a wait if need be. Raises `Overloaded`."""
        if not decision.candidates:
            return self._forwarder.begin(ask, decision, flight)  # which says why there is none
        now, tier = self._forwarder.now(), tier_of(ask.priority)
        ladder = self.ladders[tier]
        if ladder.due(now):
            self._look(ladder, now)
        if ladder.place >= QUANTISED and "quantised" in ladder.rungs:
            ask, decision = stand_in(ask, self._forwarder.choice) or (ask, decision)
        waiter = self._waiter(ask, decision, flight, tier, now)
        waiter.judged = not self._waiters and not ladder.place  # by `at_once`
        self._enter(waiter, now)
        if waiter.attempts is None and not waiter.why:
            waiter.why = self._impatience(waiter, ladder, now)
            if not waiter.why:
                await self._wait(waiter)
            else:
                self._leave(waiter)
        if waiter.attempts is None:
            self._stand_in(waiter, ladder)
        if waiter.attempts is None:
            ladder.counts.unmet += 1
            self._refuse(waiter, tier)
        ladder.counts.met += 1
        ladder.count(waiter.attempts.quality)
        return waiter.attempts

    def decide(self, ask: Ask) -> Decision:
        """Where it may go now."""
        choice = self._forwarder.choice
        decide = choice.decide_stand_in if ask.stand_in else choice.decide
        return decide(ask.tenant, ask.model)

    def _waiter(
        self, ask: Ask, decision: Decision, flight: Flight, tier: Tier, now: float
    ) -> _Waiter:
        self._count += 1
        regions = tuple(dict.fromkeys(candidate.region for candidate in decision.candidates))
        wish = Wish(
            self._count,
            ask.tenant,
            tier,
            ask.weight,
            ask.cursor,
            ask.cost,
            flight.deadline,
            regions,
        )
        return _Waiter(ask, decision, flight, wish, now)

    def _enter(self, waiter: _Waiter, now: float) -> None:
        """Let it stand in its line, and whoever is next go."""
        wish = waiter.wish
        try:
            displaced = self.room.push(wish, now, now + self.wait_s.get(wish.tier, 0.0))
        except QueueFull:
            waiter.why = "too_many"
            # Nobody who waits may go anywhere; perhaps this one may.
            self._grant_first(waiter, now)
            return
        self._waiters[wish.id] = waiter
        if displaced is not None:
            self._give_up(displaced, "displaced")
        self._pump(now)

    def _grant_first(self, waiter: _Waiter, now: float) -> None:
        """Let it in where there is room; nobody else may use it."""
        for region in waiter.wish.regions:
            if not self._judge(region, waiter, now):
                self._grant(waiter, region, now)
                return

    def _impatience(self, waiter: _Waiter, ladder: TierLadder, now: float) -> str:
        """Why it does not wait, as a key of `WHY`; "": it does."""
        wish = waiter.wish
        if ladder.place >= REFUSED or "queued" not in ladder.rungs:
            return "no_room"
        left_s = min(self.wait_s.get(wish.tier, 0.0), wish.deadline_s - now)
        return "too_long" if self._expected_s(wish, now) >= left_s else ""

    async def _wait(self, waiter: _Waiter) -> None:
        loop = asyncio.get_running_loop()
        waiter.future = loop.create_future()
        self._arm(loop)
        try:
            await waiter.future
        except asyncio.CancelledError:
            flight = waiter.flight
            if waiter.attempts is None or flight.cause not in PASSING:
                self._leave(waiter)
                self.ladders[waiter.wish.tier].counts.unmet += 1
                if waiter.attempts is not None:
                    waiter.attempts.close()
                raise
            flight.carry_on()  # it has been let in: its limits strike anew, where it is read
        finally:
            self._waited_s[waiter.wish.tier] += self._forwarder.now() - waiter.since

    def _leave(self, waiter: _Waiter) -> None:
        self.room.leave(waiter.wish.id)
        self._waiters.pop(waiter.wish.id, None)

    def _stand_in(self, waiter: _Waiter, ladder: TierLadder) -> None:
        """It was not let in; perhaps another model has room that nobody else may use."""
        if "quantised" not in ladder.rungs:
            return
        found = stand_in(waiter.ask, self._forwarder.choice)
        if found is None:
            return
        now = self._forwarder.now()
        ask, decision = found
        other = self._waiter(ask, decision, waiter.flight, waiter.wish.tier, now)
        self._grant_first(other, now)
        waiter.attempts = other.attempts

    def _refuse(self, waiter: _Waiter, tier: Tier) -> NoReturn:
        now, why = self._forwarder.now(), waiter.why or "no_room"
        self._refused[tier, why] = self._refused.get((tier, why), 0) + 1
        wait_s = self._expected_s(waiter.wish, now)
        drain = sum(self._gate.drain_per_s(region, now) for region in waiter.wish.regions)
        full, draw = self.ladders[tier].pressure, self._rng.random()
        raise Overloaded(WHY[why], self._comeback.after_s(tier, wait_s, drain, full, draw, now))

    # Room

    def _room_again(self) -> None:
        """The gate has room, perhaps. Asked once for all that happens in one turn of the loop."""
        if self._waiters and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._on_room)

    def _on_room(self) -> None:
        self._soon = False
        self._pump(self._forwarder.now())

    def _pump(self, now: float) -> None:
        """Let in whoever may go."""
        waiters = self._waiters

        def judge(region: str, wish: Wish) -> Hindrance:
            return self._judge(region, waiters[wish.id], now)

        while self._waiters:
            found = self.room.next(now, judge)
            if found is None:
                return
            waiter = self._waiters.pop(found.wish.id)
            if type(found) is Granted:
                self._grant(waiter, found.region, now)
            else:
                waiter.why = "level"
                waiter.wake()

    def _judge(self, region: str, waiter: _Waiter, now: float) -> Hindrance:
        wish, again = waiter.wish, waiter.judged
        waiter.judged = True
        return self._gate.judge(region, wish.tier, wish.cursor, wish.cost, now, again=again)

    def _grant(self, waiter: _Waiter, region: str, now: float) -> None:
        """Send it there, by what is decided now: much may have changed since it came."""
        ask, decision, waited = waiter.ask, waiter.decision, waiter.future is not None
        if waited:
            decision = self.decide(ask)
        chosen = next((c for c in decision.candidates if c.region == region), None)
        if chosen is None and decision.candidates:
            chosen = next(
                (c for c in decision.candidates if not self._judge(c.region, waiter, now)), None
            )
            if chosen is None:
                waiter.why = "moved"
                waiter.wake()
                return
        attempts = self._forwarder.begin(ask, _led_by(decision, chosen), waiter.flight)
        attempts.quality = _quality(ask, decision, chosen, waited)
        if chosen is not None:
            attempts.send()
        waiter.attempts = attempts
        waiter.wake()

    def _give_up(self, wish: Wish, why: str) -> None:
        waiter = self._waiters.pop(wish.id)
        waiter.why = why
        waiter.wake()

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._waiters:
            return
        self._arm(loop)  # first of all: whatever becomes of one, the others are looked at again
        now = self._forwarder.now()
        for wish in self.room.expire(now):
            self._give_up(wish, "too_late")
        self._pump(now)
        self.look(now)

    # The ladder

    def look(self, now: float) -> None:
        """Where the figures lead, for all tiers; some times a second at most."""
        for ladder in self.ladders.values():
            if ladder.due(now):
                self._look(ladder, now)

    def standings(self) -> list[Standing]:
        """As of now, by tier."""
        self.look(self._forwarder.now())
        return [ladder.standing() for ladder in self.ladders.values()]

    def reports(self, wall_s: float) -> list[StandingReport]:
        """The same for heartbeats, at that Unix time."""
        now = self._forwarder.now()
        return [
            StandingReport(
                standing.tier,
                standing.quality,
                wall_s - (now - standing.since),
                standing.pressure,
                standing.why,
                {str(quality): rate for quality, rate in standing.recent.items()},
            )
            for standing in self.standings()
        ]

    def _look(self, ladder: TierLadder, now: float) -> None:
        """The wait for room is that of one more like the last who came and waits."""
        tier = ladder.tier
        may_s = max(self.wait_s.get(tier, 0.0), 0.001)
        waits = [self._expected_s(waiter.wish, now) for waiter in self._last_waiting(tier)]
        ladder.look(max(waits, default=0.0) / may_s, now)

    def _last_waiting(self, tier: Tier) -> Iterable[_Waiter]:
        """The last of this tier that came, of those who wait."""
        for waiter in reversed(self._waiters.values()):
            if waiter.wish.tier == tier:
                return (waiter,)
        return ()

    def _expected_s(self, wish: Wish, now: float) -> float:
        """How long one like it would wait for room, if it came now."""
        gate = self._gate
        first_s = min(gate.wait_s(region, wish.tier, now) for region in wish.regions)
        ahead = self.room.ahead(wish)
        if ahead == 0:
            return first_s
        drain = sum(gate.drain_per_s(region, now) for region in wish.regions)
        return first_s + (ahead / drain if drain > 0 else 0.0)

    def samples(self) -> Iterable[Sample]:
        name = "tradewind_edge_"
        waiting = self.room.waiting()
        for tier, ladder in self.ladders.items():
            labels = {"tier": tier}
            yield Sample(name + "waiting", "Requests that wait for room.", waiting[tier], labels)
            text = "Seconds that requests waited for room."
            yield Sample(name + "waited_seconds_total", text, self._waited_s[tier], labels)
            text = "Pressure, as the ladder has it."
            yield Sample(name + "pressure", text, ladder.pressure, labels)
            for quality, count in ladder.counts.by_quality.items():
                text = "Requests by what they were given."
                yield Sample(name + "quality_total", text, count, {**labels, "quality": quality})
        for (tier, why), count in self._refused.items():
            text = "Requests refused for want of room."
            yield Sample(name + "turned_away_total", text, count, {"tier": tier, "why": why})


def _led_by(decision: Decision, chosen: Candidate | None) -> Decision:
    """The same with that one first."""
    if chosen is None or decision.candidates[0] is chosen:
        return decision
    others = tuple(c for c in decision.candidates if c is not chosen)
    return msgspec.structs.replace(decision, candidates=(chosen, *others))


def _quality(ask: Ask, decision: Decision, chosen: Candidate | None, waited: bool) -> Quality:
    if ask.stand_in:
        return "quantised"
    if waited:
        return "queued"
    return "full" if chosen is None or chosen is decision.candidates[0] else "other-region"

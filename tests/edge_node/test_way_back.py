"""An answer that has begun and has no way left waits for one to live again, and not for long."""

from __future__ import annotations

import asyncio

import pytest

from edge_node.errors import AttemptsExhausted
from edge_node.forward.memory import Answer, MemoryUpstream
from edge_node.inflight import Cause
from tests.edge_node.trips import Trip
from tests.edge_node.worlds import RTT_MS, TEXT, WORDS, snapshot
from topology.overlay.errors import PathDown
from topology.overlay.frames import Accept, End, Request, Tokens

# This tenant's data stays in one region, to which there is one way that it may take.
TENANT, HOME = "eurobank", "frankfurt"


class Cutting:
    """Regions whose ways die after so many tokens, as often as is told, for good or for a while."""

    def __init__(self, after: int, times: int = 1, back_s: float | None = 0.2) -> None:
        self.regions = MemoryUpstream(dict.fromkeys(RTT_MS, self._answer), RTT_MS)
        self.after, self.times, self.back_s = after, times, back_s
        self.cuts = 0

    async def _answer(self, request: Request, body: bytes) -> Answer:
        yield Accept(0.0, 0.1, HOME, "memory")
        begin = len(request.resume_tokens)
        for position in range(begin, len(WORDS)):
            if self.cuts < self.times and position == begin + self.after:
                self._cut()
                raise PathDown(HOME, "it was cut")
            yield Tokens(position, (1000 + position,), WORDS[position])
        yield End("stop", 7, len(WORDS), 0.1)

    def _cut(self) -> None:
        self.cuts += 1
        self.regions.cut(HOME)
        if self.back_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self.back_s, lambda: self.regions.cut(HOME, reachable=True))


async def outcome(trip: Trip, pour: bool = False) -> tuple[object, float]:
    """How it ended, and how long that took."""
    began = asyncio.get_running_loop().time()
    try:
        found: object = await trip.run(pour=pour)
    except AttemptsExhausted as error:
        found = error
    return found, asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("pour", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_it_goes_on_when_the_way_lives_again(stream: bool, pour: bool) -> None:
    world = Cutting(3)
    trip = Trip(world.regions, tenant=TENANT, stream=stream)
    found, _ = await outcome(trip, pour)
    assert isinstance(found, End)
    assert "".join(trip.attempts.text) == TEXT
    assert world.regions.ways == [(HOME, ""), (HOME, "")]
    assert (trip.figures.waited_for_ways, trip.figures.resumed) == (1, 1)
    assert trip.forwarder.budget.spent == 0


async def test_it_goes_on_each_time_that_it_got_further() -> None:
    world = Cutting(2, times=3, back_s=0.05)
    trip = Trip(world.regions, tenant=TENANT)
    found, _ = await outcome(trip)
    assert isinstance(found, End)
    assert trip.text == TEXT
    assert trip.figures.waited_for_ways == 3


async def test_a_way_that_stays_dead_is_not_waited_for_for_long() -> None:
    world = Cutting(3, back_s=None)
    trip = Trip(world.regions, tenant=TENANT)
    trip.forwarder.way_back_s = 0.4
    found, lasted_s = await outcome(trip)
    assert isinstance(found, AttemptsExhausted)
    assert found.streaming
    assert trip.text == "".join(WORDS[:3])
    assert 0.35 <= lasted_s < 5.0
    assert trip.figures.waited_for_ways == 0
    assert trip.figures.failed_attempts == 1


async def test_what_has_not_begun_is_told_at_once() -> None:
    world = Cutting(0, back_s=None)
    found, lasted_s = await outcome(Trip(world.regions, tenant=TENANT))
    assert isinstance(found, AttemptsExhausted)
    assert lasted_s < 2.0


async def test_where_another_region_may_go_on_nobody_waits() -> None:
    world = Cutting(3, back_s=None)
    trip = Trip(world.regions, tenant="acme")
    found, _ = await outcome(trip)
    assert isinstance(found, End)
    assert trip.text == TEXT
    assert trip.figures.waited_for_ways == 0


@pytest.mark.parametrize("cause", [Cause.DEADLINE, Cause.DISCONNECT, Cause.SHUTDOWN])
async def test_it_waits_no_longer_than_its_client_does(cause: Cause) -> None:
    world = Cutting(3, back_s=None)
    trip = Trip(world.regions, tenant=TENANT, deadline_s=0.3 if cause is Cause.DEADLINE else 10.0)
    running = asyncio.create_task(trip.run())
    if cause is not Cause.DEADLINE:
        await asyncio.sleep(0.1)
        trip.flight.stop(cause)
    begin = asyncio.get_running_loop().time()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert trip.flight.cause is cause
    assert asyncio.get_running_loop().time() - begin < 2.0


@pytest.mark.parametrize("cause", [Cause.STALL, Cause.SILENCE, Cause.MOVE, Cause.HEDGE])
async def test_what_concerns_its_region_alone_does_not_end_the_wait(cause: Cause) -> None:
    world = Cutting(3)
    trip = Trip(world.regions, tenant=TENANT)
    running = asyncio.create_task(trip.run())
    await asyncio.sleep(0.1)
    trip.attempts.leave(HOME, cause)  # it is in no region
    trip.flight.stop(cause)
    assert isinstance(await running, End)
    assert trip.text == TEXT


async def test_regions_that_are_no_more_are_forgotten() -> None:
    world = Cutting(3)
    trip = Trip(world.regions)
    await trip.run()
    figures, forwarder = trip.figures, trip.forwarder
    figures.region_load["atlantis"] = 1.0
    forwarder.first_tokens.add("atlantis", 0.1)
    progress = forwarder.watch._progress
    progress._paces["atlantis"] = progress._paces.pop(HOME, None) or object()  # type: ignore[assignment]
    trip.use(snapshot())
    known = {*figures.region_load, *forwarder.first_tokens._seen, *progress._paces}
    assert known <= set(RTT_MS)
    assert HOME in figures.region_load

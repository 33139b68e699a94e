"""A region that answers probes and brings nothing on: its answers go on elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge_node.errors import AttemptsExhausted, RegionSilent
from edge_node.forward.memory import Answer, MemoryUpstream
from edge_node.forward.progress import STALL_LEAST_S
from edge_node.inflight import Cause
from tests.edge_node.trips import Trip
from tests.edge_node.worlds import RTT_MS, TEXT, answering, upstream
from topology.overlay.frames import End, Request, Tokens

MANY = tuple(f" {n}" for n in range(20))


class Engine:
    """A region that gives a token each 20 ms, until it hangs."""

    def __init__(self) -> None:
        self.hangs = asyncio.Event()
        self.given = 0

    async def answer(self, request: Request, body: bytes) -> Answer:
        for position in range(len(request.resume_tokens), len(MANY)):
            if self.hangs.is_set():
                await asyncio.sleep(3600)
            yield Tokens(position, (1000 + position,), MANY[position])
            self.given += 1
            await asyncio.sleep(0.02)
        yield End("stop", 7, len(MANY), 0.1)


def world() -> tuple[Engine, MemoryUpstream]:
    engine = Engine()
    others = {name: answering(name, MANY) for name in ("dubai", "singapore")}
    return engine, MemoryUpstream({"frankfurt": engine.answer, **others}, RTT_MS)


async def begun(engine: Engine, regions: MemoryUpstream, **trip: Any) -> list[Trip]:
    """Some answers, at work in an engine whose pace is known by now."""
    first = Trip(regions, **trip)
    trips = [first, *(Trip(regions, beside=first, **trip) for _ in range(3))]
    await trips[3].run()
    return trips[:3]


@pytest.mark.parametrize("pour", [True, False])
async def test_all_go_on_elsewhere_after_a_second(pour: bool) -> None:
    engine, regions = world()
    trips = await begun(engine, regions)
    running = [asyncio.create_task(trip.run(pour=pour)) for trip in trips]
    async with asyncio.timeout(20):
        while engine.given < len(MANY) + 30:
            await asyncio.sleep(0.01)
    engine.hangs.set()
    begin = asyncio.get_running_loop().time()
    await asyncio.gather(*running)
    assert asyncio.get_running_loop().time() - begin >= STALL_LEAST_S * 0.9
    assert [trip.text for trip in trips] == ["".join(MANY)] * 3
    [(region, why)] = regions.distrusted
    assert region == "frankfurt"
    assert "3 answers" in why
    figures = trips[0].figures
    assert (figures.stalls, figures.stalled, figures.resumed) == (1, 3, 3)
    assert trips[0].forwarder.budget.spent == 0


async def test_where_nobody_else_may_go_on_it_stays_and_waits_for_as_long_as_allowed() -> None:
    engine, regions = world()
    [trip, *others] = await begun(engine, regions, tenant="eurobank", silence_s=2.0)
    for other in others:
        other.attempts.close()
        other.flights.close(other.flight)
    running = asyncio.create_task(trip.run())
    async with asyncio.timeout(20):
        while engine.given < len(MANY) + 10:
            await asyncio.sleep(0.01)
    engine.hangs.set()
    begin = asyncio.get_running_loop().time()
    with pytest.raises(AttemptsExhausted) as caught:
        await running
    assert isinstance(caught.value.last, RegionSilent)
    assert asyncio.get_running_loop().time() - begin >= 1.7
    assert trip.figures.stalled == 0
    assert regions.distrusted[0][0] == "frankfurt"


async def test_a_client_that_does_not_read_is_not_its_regions_fault() -> None:
    """Nor is it interrupted where it waits for its client."""
    regions = upstream(frankfurt=answering("frankfurt", pause_s=0.01))
    trip = Trip(regions, silence_s=0.3)
    frame = await trip.attempts.next()
    assert isinstance(frame, Tokens)
    trip.seen.append(frame.text)
    trip.attempts.leave("frankfurt", Cause.STALL)
    await asyncio.sleep(0.8)
    await trip.run()
    assert trip.text == TEXT
    assert (trip.attempts.tried, trip.figures.failed_attempts) == (["frankfurt"], 0)


async def test_one_timer_for_all_and_none_for_nobody() -> None:
    regions = upstream()
    first = Trip(regions)
    trips = [first, *(Trip(regions, beside=first) for _ in range(20))]
    watch = first.forwarder.watch
    assert len(watch) == 21
    for trip in trips:
        await trip.run()
    assert len(watch) == 0
    await asyncio.sleep(0.25)
    assert watch._timer is None


async def test_what_regions_say_of_their_queues_is_passed_on() -> None:
    regions = upstream()
    await Trip(regions).run()
    assert (regions.queues_ms, regions.trusted) == ({"frankfurt": 0.0}, ["frankfurt"])

"""A drain's deadline: what still runs there goes on elsewhere, smoothly, if anybody else may."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from edge_node.errors import AttemptsExhausted
from edge_node.forward.drains import Drains
from edge_node.forward.memory import Answer, MemoryUpstream
from tests.edge_node.trips import Trip
from tests.edge_node.worlds import RTT_MS, TEXT, WORDS, answering, refusing, snapshot, upstream
from tests.topology.worlds import document
from topology.directive import NONE, Directive
from topology.overlay.errors import PathDown, RegionFailure
from topology.overlay.frames import End, Failure, Request, Tokens
from topology.resources import Key, parse
from topology.snapshot import Snapshot

NOW_S = 1_700_000_000.0


def drained(*, at_s: float = NOW_S, revision: int = 7, **spec: Any) -> Snapshot:
    raw = {"region": "frankfurt", "action": "drain", "reason": "x", "deadline_s": 30.0} | spec
    override = parse(document("Override", "frankfurt", **raw), "test")
    stored = msgspec.structs.replace(override, revision=revision, time_s=at_s)
    return snapshot().changed(revision, [stored])


def overdue(drains: Drains, config: Snapshot, now_s: float, to: float | None = None) -> bool:
    told = NONE
    if to is not None:
        told = Directive(drains={"frankfurt": to}, overrides={"frankfurt": config.revision})
    return "frankfurt" in drains.overdue(config, told, now_s)


def test_it_counts_from_when_the_drain_was_written() -> None:
    config = drained()
    for drains in (Drains(), Drains()):  # an edge that is told of it late is late for nothing
        assert not overdue(drains, config, NOW_S + 29.9)
        assert overdue(drains, config, NOW_S + 30.0)


def test_a_writer_whose_clock_is_ahead_makes_nobody_wait_for_it() -> None:
    config, drains = drained(at_s=NOW_S + 5000), Drains()
    assert not overdue(drains, config, NOW_S)
    assert overdue(drains, config, NOW_S + 30)


def test_a_paced_one_counts_from_when_it_is_full() -> None:
    config, drains = drained(over_s=60.0), Drains()
    assert not overdue(drains, config, NOW_S + 500)
    assert not overdue(drains, config, NOW_S + 600, to=99.0)
    assert not overdue(drains, config, NOW_S + 601, to=100.0)
    assert overdue(drains, config, NOW_S + 631, to=100.0)
    assert not overdue(drains, config, NOW_S + 632, to=80.0)
    assert not overdue(drains, config, NOW_S + 633, to=100.0)  # anew


@pytest.mark.parametrize(
    "spec", [{"deadline_s": None}, {"percent": 99.0}, {"expires_s": NOW_S + 40.0}]
)
def test_not_without_a_deadline_nor_of_a_part_nor_once_it_has_expired(spec: dict[str, Any]) -> None:
    assert not overdue(Drains(), drained(**spec), NOW_S + 50)


def test_at_once_and_anew_with_another_drain() -> None:
    drains = Drains()
    assert overdue(drains, drained(deadline_s=0.0), NOW_S)
    assert not overdue(drains, drained(at_s=NOW_S + 100, revision=8), NOW_S + 110)


# Answers


def slow(region: str, first: asyncio.Event) -> Any:
    """Gives a token each 0.2 s; `first` is set once it has given some."""

    async def answer(request: Request, body: bytes) -> Answer:
        for position in range(len(request.resume_tokens), len(WORDS)):
            yield Tokens(position, (1000 + position,), WORDS[position])
            if position > 1:
                first.set()
            await asyncio.sleep(0.2)
        yield End("stop", 7, len(WORDS), 0.1)

    return answer


async def moved(regions: MemoryUpstream, begun: asyncio.Event, **trip: Any) -> Trip:
    """An answer begun in frankfurt, which is drained under it, with a deadline that has passed."""
    found = Trip(regions, **trip)
    running = asyncio.create_task(found.run())
    await asyncio.wait_for(begun.wait(), 5)
    found.use(drained())
    found.clock.advance(60.0)
    await asyncio.wait_for(running, 10)
    return found


async def test_an_answer_goes_on_elsewhere_and_that_is_no_failure() -> None:
    begun = asyncio.Event()
    regions = upstream(frankfurt=slow("frankfurt", begun))
    trip = await moved(regions, begun)
    assert trip.text == TEXT
    assert trip.attempts.tried == ["frankfurt", "dubai"]
    figures = trip.figures
    assert (figures.moved, figures.failed_attempts, figures.resumed) == (1, 0, 1)
    assert (trip.forwarder.budget.spent, figures.retried) == (0, 0)
    assert regions.cancelled == 1
    failed = [c.failed for cls in figures.load.classes.values() for c in cls.regions.values()]
    assert not any(failed)


async def test_an_answer_that_nobody_else_may_give_ends_where_it_is() -> None:
    begun = asyncio.Event()
    regions = upstream(frankfurt=slow("frankfurt", begun))
    trip = await moved(regions, begun, tenant="eurobank")
    assert trip.text == TEXT
    assert (trip.attempts.tried, trip.figures.moved) == (["frankfurt"], 0)


async def test_when_everybody_else_refuses_it_goes_back_to_where_it_was() -> None:
    begun = asyncio.Event()
    full = {
        name: refusing(name, "overloaded", 503, retryable=True) for name in ("dubai", "singapore")
    }
    regions = upstream(frankfurt=slow("frankfurt", begun), **full)
    trip = await moved(regions, begun)
    assert trip.text == TEXT
    assert trip.attempts.tried == ["frankfurt", "dubai", "singapore", "frankfurt"]


async def test_it_does_not_go_back_where_the_tenants_data_may_not_be_any_more() -> None:
    begun = asyncio.Event()

    async def moving_away(request: Request, body: bytes) -> Answer:
        config = trip.choice.snapshot
        acme = msgspec.structs.replace(config.tenants["acme"], residency=("SG", "AE"))
        resource = config.get(Key("Tenant", "acme"))
        assert resource is not None
        trip.use(config.changed(8, [msgspec.structs.replace(resource, spec=acme)]))
        failure = Failure("overloaded", "full", 503, retryable=True)
        raise RegionFailure("dubai", failure)
        yield

    full = refusing("singapore", "overloaded", 503, retryable=True)
    regions = upstream(frankfurt=slow("frankfurt", begun), dubai=moving_away, singapore=full)
    trip = Trip(regions)
    running = asyncio.create_task(trip.run())
    await asyncio.wait_for(begun.wait(), 5)
    trip.use(drained())
    trip.clock.advance(60.0)
    with pytest.raises(AttemptsExhausted):
        await asyncio.wait_for(running, 10)
    assert trip.attempts.tried == ["frankfurt", "dubai", "singapore"]


async def test_an_answer_without_token_ids_is_left_where_it_is() -> None:
    begun = asyncio.Event()

    async def foreign(request: Request, body: bytes) -> Answer:
        for word in WORDS:
            yield Tokens(0, (), word)
            begun.set()
            await asyncio.sleep(0.1)
        yield End("stop", 7, len(WORDS), 0.1)

    trip = await moved(upstream(frankfurt=foreign), begun)
    assert (trip.text, trip.figures.moved) == (TEXT, 0)


async def test_answers_move_a_few_at_a_time() -> None:
    slowly = answering("frankfurt", pause_s=0.6)
    regions = upstream(frankfurt=slowly, dubai=answering("dubai", pause_s=0.05))
    first = Trip(regions)
    trips = [first, *(Trip(regions, beside=first) for _ in range(29))]
    running = [asyncio.create_task(trip.run()) for trip in trips]
    times: list[float] = []
    async with asyncio.timeout(20):
        while len(regions.sent) < 30:
            await asyncio.sleep(0.01)
        first.use(drained())
        first.clock.advance(60.0)
        while len(regions.sent) < 60:
            await asyncio.sleep(0.02)
            now = asyncio.get_running_loop().time()
            times += [now] * (len(regions.sent) - 30 - len(times))
    assert times[-1] - times[0] >= 0.6  # a tenth of them at each look
    assert max(sum(t <= s < t + 0.09 for s in times) for t in times) <= 9
    await asyncio.gather(*running)
    assert {trip.text for trip in trips} == {TEXT}
    assert first.figures.moved == 30


async def test_a_region_that_dies_after_it_took_over_is_left_for_a_third() -> None:
    begun = asyncio.Event()

    async def dies(request: Request, body: bytes) -> Answer:
        at = len(request.resume_tokens)
        yield Tokens(at, (1000 + at,), WORDS[at])
        raise PathDown("dubai", "it was cut")

    trip = await moved(upstream(frankfurt=slow("frankfurt", begun), dubai=dies), begun)
    assert trip.text == TEXT
    assert trip.attempts.tried == list(RTT_MS)

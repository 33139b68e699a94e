"""Hedges: a second exchange when the first token is late, and never two answers mixed."""

from __future__ import annotations

import asyncio

import pytest

from edge_node.errors import AttemptsExhausted
from edge_node.forward.hedging import ENOUGH, UNKNOWN_S, FirstTokens
from edge_node.forward.memory import Answer, MemoryUpstream, Region
from edge_node.inflight import Cause
from tests.edge_node.trips import Trip
from tests.edge_node.worlds import (
    RTT_MS,
    TEXT,
    WORDS,
    answering,
    dying,
    refusing,
    silent,
    upstream,
)
from topology.overlay.errors import PathDown
from topology.overlay.frames import Accept, End, Request, Tokens

# How late is late


def test_what_is_usual_is_learnt_by_region() -> None:
    first = FirstTokens()
    assert first.late_s("dubai", 10.0, 10.0) == UNKNOWN_S
    for _ in range(95):
        first.add("dubai", 0.2)
    assert first.late_s("dubai", 10.0, 10.0) == 0.2
    assert first.late_s("frankfurt", 10.0, 10.0) == UNKNOWN_S


def test_bounds_are_two_round_trips_and_what_the_policy_allows() -> None:
    first = FirstTokens()
    for _ in range(ENOUGH):
        first.add("near", 0.001)
        first.add("slow", 30.0)
    assert first.late_s("near", 100.0, 10.0) == pytest.approx(0.25)
    assert first.late_s("slow", 100.0, 10.0) == 10.0


def test_it_is_the_late_ones_that_count_and_old_ones_are_forgotten() -> None:
    first = FirstTokens()
    for n in range(64):
        first.add("dubai", 2.0 if n % 16 == 0 else 0.1)
    assert first.late_s("dubai", 1.0, 10.0) == 2.0
    for _ in range(64):
        first.add("dubai", 0.1)
    assert first.late_s("dubai", 1.0, 10.0) == 0.1


# Requests


def quick(trip: Trip) -> Trip:
    """One whose edge expects first tokens within 0.1 s or so, nearby."""
    for region in RTT_MS:
        for _ in range(64):
            trip.forwarder.first_tokens.add(region, 0.1)
    return trip


def mute(region: str) -> Region:
    """Does not even accept."""

    async def answer(request: Request, body: bytes) -> Answer:
        await asyncio.sleep(3600)
        yield Accept(0.0, 0.0, region, "memory")

    return answer


def ways(regions: MemoryUpstream) -> list[tuple[str, str, int]]:
    """Where the request was sent, how, and as which attempt."""
    both = zip(regions.ways, regions.sent, strict=True)
    return [(region, relay, request.attempt) for (region, relay), (_, request, _) in both]


async def test_a_late_first_token_is_asked_for_a_second_time_and_the_first_is_let_go() -> None:
    regions = upstream(frankfurt=silent("frankfurt"))
    trip = quick(Trip(regions, hedge=True))
    begin = asyncio.get_running_loop().time()
    await trip.run()
    assert asyncio.get_running_loop().time() - begin < 4.0  # the limit for silence is 5 s
    assert trip.text == TEXT
    assert ways(regions) == [("frankfurt", "", 1), ("dubai", "", 2)]
    assert {request.request_id for _, request, _ in regions.sent} == {"r1"}
    assert regions.cancelled == 1
    figures = trip.figures
    assert (figures.hedged, figures.hedges_won, trip.forwarder.budget.spent) == (1, 1, 1)
    assert (figures.failed_attempts, figures.retried) == (0, 0)
    assert trip.attempts.candidate is not None and trip.attempts.candidate.region == "dubai"
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_the_first_may_still_win() -> None:
    regions = upstream(
        frankfurt=answering("frankfurt", first_s=0.3), dubai=answering("dubai", first_s=3.0)
    )
    trip = quick(Trip(regions, hedge=True))
    await trip.run(pour=True)
    assert trip.text == TEXT
    assert (trip.figures.hedged, trip.figures.hedges_won) == (1, 0)
    assert trip.attempts.candidate is not None and trip.attempts.candidate.region == "frankfurt"
    assert (len(regions.sent), regions.cancelled) == (2, 1)


async def test_without_an_accept_it_is_the_way_that_is_in_doubt() -> None:
    regions = MemoryUpstream(
        {"frankfurt": mute("frankfurt"), "dubai": answering("dubai")},
        RTT_MS,
        {"frankfurt": ("dubai",)},
    )

    async def straight_is_dead(request: Request, body: bytes) -> Answer:
        if regions.ways[-1] == ("frankfurt", ""):
            await asyncio.sleep(3600)
        async for frame in answering("frankfurt")(request, body):
            yield frame

    regions.regions["frankfurt"] = straight_is_dead
    trip = quick(Trip(regions, hedge=True))
    await trip.run()
    assert trip.text == TEXT
    assert ways(regions) == [("frankfurt", "", 1), ("frankfurt", "dubai", 2)]
    assert trip.attempts.tried == ["frankfurt", "frankfurt via dubai"]
    assert trip.attempts.candidate is not None and trip.attempts.candidate.path == "via dubai"


@pytest.mark.parametrize("hedge", [True, False])
async def test_nothing_is_late_in_time_nor_where_nobody_asked_for_hedges(hedge: bool) -> None:
    regions = upstream(frankfurt=answering("frankfurt", first_s=0.0 if hedge else 0.4))
    trip = Trip(regions, hedge=hedge)
    await (trip if hedge else quick(trip)).run()
    assert len(regions.sent) == 1
    assert trip.figures.hedged == 0


async def test_no_hedge_once_the_budget_is_spent() -> None:
    regions = upstream(frankfurt=silent("frankfurt"))
    trip = quick(Trip(regions, hedge=True, silence_s=0.8))
    trip.forwarder.budget.share = trip.forwarder.budget.min_per_s = 0.0
    with pytest.raises(AttemptsExhausted):  # nor is silence asked about elsewhere
        await trip.run()
    assert len(regions.sent) == 1
    assert trip.figures.hedged == 0
    assert trip.forwarder.budget.refused == 2


async def test_no_hedge_shortly_before_the_deadline() -> None:
    regions = upstream(frankfurt=silent("frankfurt"))
    trip = quick(Trip(regions, hedge=True, deadline_s=0.3))
    with pytest.raises(asyncio.CancelledError):
        await trip.run()
    assert trip.flight.cause is Cause.DEADLINE
    assert len(regions.sent) == 1


async def test_no_hedge_once_something_came() -> None:
    async def stutters(request: Request, body: bytes) -> Answer:
        yield Tokens(0, (1000,), WORDS[0])
        await asyncio.sleep(0.6)
        for position in range(1, len(WORDS)):
            yield Tokens(position, (1000 + position,), WORDS[position])
        yield End("stop", 7, len(WORDS), 0.0)

    regions = upstream(frankfurt=stutters)
    trip = quick(Trip(regions, hedge=True))
    await trip.run()
    assert (trip.text, len(regions.sent)) == (TEXT, 1)


@pytest.mark.parametrize("kind", ["dies", "refuses", "final"])
async def test_an_error_of_one_leaves_the_other(kind: str) -> None:
    async def fails(request: Request, body: bytes) -> Answer:
        await asyncio.sleep(0.1)
        region = (
            dying("x", 0)
            if kind == "dies"
            else refusing("x", "overloaded", 503, retryable=kind == "refuses")
        )
        async for frame in region(request, body):
            yield frame

    async def fails_later(request: Request, body: bytes) -> Answer:
        await asyncio.sleep(0.4)
        async for frame in fails(request, body):
            yield frame

    for regions in (
        upstream(frankfurt=answering("frankfurt", first_s=0.6), dubai=fails),
        upstream(frankfurt=fails_later, dubai=answering("dubai", first_s=0.8)),
    ):
        trip = quick(Trip(regions, hedge=True))
        await trip.run()
        assert trip.text == TEXT
        assert len(regions.sent) == 2
        assert trip.figures.failed_attempts == 1


async def test_when_both_fail_the_request_goes_on_by_the_usual_rules() -> None:
    regions = upstream(frankfurt=mute("frankfurt"), dubai=dying("dubai", 0))

    async def dies_late(request: Request, body: bytes) -> Answer:
        await asyncio.sleep(0.5)
        raise PathDown("frankfurt", "it was cut")
        yield

    regions.regions["frankfurt"] = dies_late
    trip = quick(Trip(regions, hedge=True))
    await trip.run()
    assert trip.text == TEXT
    assert ways(regions) == [("frankfurt", "", 1), ("dubai", "", 2), ("singapore", "", 3)]
    assert trip.figures.failed_attempts == 2


async def test_silence_of_the_first_leaves_the_second() -> None:
    regions = upstream(frankfurt=silent("frankfurt"), dubai=answering("dubai", first_s=1.2))
    trip = quick(Trip(regions, hedge=True, silence_s=1.5))
    for _ in range(64):
        trip.forwarder.first_tokens.add("frankfurt", 0.5)
    await trip.run()
    assert trip.text == TEXT
    assert ways(regions) == [("frankfurt", "", 1), ("dubai", "", 2)]


async def test_two_different_answers_are_never_mixed() -> None:
    """Of foreign engines, which may say something else each time."""

    def foreign(words: str, first_s: float) -> Region:
        async def answer(request: Request, body: bytes) -> Answer:
            await asyncio.sleep(first_s)
            for word in words:
                yield Tokens(0, (), word)
                await asyncio.sleep(0.01)
            yield End("stop", 7, len(words), 0.0)

        return answer

    for second_s, told in ((0.0, "bbbbb"), (0.9, "aaaaa")):
        regions = upstream(frankfurt=foreign("aaaaa", 0.5), dubai=foreign("bbbbb", second_s))
        trip = quick(Trip(regions, hedge=True))
        await trip.run(pour=True)
        assert trip.text == told


async def test_a_client_that_leaves_frees_both() -> None:
    regions = upstream(frankfurt=silent("frankfurt"), dubai=silent("dubai"))
    trip = quick(Trip(regions, hedge=True))
    running = asyncio.create_task(trip.run())
    async with asyncio.timeout(20):
        while len(regions.sent) < 2:
            await asyncio.sleep(0.01)
    trip.flight.stop(Cause.DISCONNECT)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert regions.cancelled == 2
    assert len(trip.forwarder.watch) == 0

"""One request's way through the regions: retries, resumption, limits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.errors import AttemptsExhausted, Refused, RegionSilent
from edge_node.forward.attempt import Unsent
from edge_node.forward.memory import Answer, MemoryUpstream, Region
from edge_node.forward.ways import MOST_WAYS
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
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.frames import Accept, End, Failure, Request, Tokens


def sent(regions: MemoryUpstream) -> list[str]:
    return [region for region, _, _ in regions.sent]


async def test_the_nearest_region_answers() -> None:
    regions = upstream()
    trip = Trip(regions)
    end = await trip.run()
    assert (trip.text, end.completion_tokens) == (TEXT, len(WORDS))
    assert sent(regions) == ["frankfurt"]
    _, request, body = regions.sent[0]
    assert (request.attempt, request.tenant, request.model, body) == (1, "acme", "small", b"{}")
    assert 9_900 <= request.deadline_ms <= 10_000
    assert regions.cancelled == 0


async def test_a_cut_before_the_first_token_is_tried_elsewhere() -> None:
    regions = upstream(frankfurt=dying("frankfurt", 0))
    trip = Trip(regions)
    await trip.run()
    assert trip.text == TEXT
    assert sent(regions) == ["frankfurt", "dubai"]
    assert [request.attempt for _, request, _ in regions.sent] == [1, 2]
    assert trip.figures.resumed == 0


async def test_a_cut_in_the_middle_is_continued_with_what_the_client_has() -> None:
    regions = upstream(frankfurt=dying("frankfurt", 4))
    trip = Trip(regions)
    await trip.run()
    assert trip.text == TEXT
    assert regions.sent[1][1].resume_tokens == (1000, 1001, 1002, 1003)
    assert [request.priority for _, request, _ in regions.sent] == [3, 2]  # it had its turn
    assert trip.figures.resumed == 1


async def test_no_region_is_tried_twice_and_no_more_than_allowed() -> None:
    dead = {name: dying(name, 0) for name in RTT_MS}
    regions = upstream(**dead)
    with pytest.raises(AttemptsExhausted) as caught:
        await Trip(regions).run()
    assert sent(regions) == ["frankfurt", "dubai", "singapore"]
    assert caught.value.tried == ("frankfurt", "dubai", "singapore")
    full = {name: refusing(name, "overloaded", 503, retryable=True) for name in RTT_MS}
    regions = upstream(**full)
    with pytest.raises(AttemptsExhausted):
        await Trip(regions, attempts=2).run()
    assert sent(regions) == ["frankfurt", "dubai"]


async def test_what_died_counts_for_nothing_against_the_attempts_that_are_allowed() -> None:
    regions = upstream(frankfurt=dying("frankfurt", 2), dubai=dying("dubai", 2))
    trip = Trip(regions, attempts=1)
    await trip.run()
    assert trip.text == TEXT
    assert sent(regions) == ["frankfurt", "dubai", "singapore"]


@pytest.mark.parametrize(("code", "status"), [("invalid", 400), ("overloaded", 503)])
async def test_a_final_failure_is_not_tried_elsewhere(code: str, status: int) -> None:
    regions = upstream(frankfurt=refusing("frankfurt", code, status, retryable=False))
    with pytest.raises(AttemptsExhausted) as caught:
        await Trip(regions).run()
    assert isinstance(caught.value.last, RegionFailure)
    assert sent(regions) == ["frankfurt"]


async def test_no_retry_once_the_budget_is_spent_but_what_died_is_gone_round() -> None:
    regions = upstream(frankfurt=refusing("frankfurt", "overloaded", 503, retryable=True))
    trip = Trip(regions)
    trip.forwarder.budget.share = trip.forwarder.budget.min_per_s = 0.0
    with pytest.raises(AttemptsExhausted) as caught:
        await trip.run()
    assert isinstance(caught.value.last, RegionFailure)
    assert caught.value.last.failure.status == 503
    assert sent(regions) == ["frankfurt"]
    closing = refusing("dubai", "draining", 503, retryable=True)
    regions = upstream(frankfurt=dying("frankfurt", 0), dubai=closing)
    trip = Trip(regions)
    trip.forwarder.budget.share = trip.forwarder.budget.min_per_s = 0.0
    await trip.run()
    assert sent(regions) == ["frankfurt", "dubai", "singapore"]
    assert trip.forwarder.budget.refused == 0


async def test_an_answer_that_has_begun_is_carried_on_whatever_the_budget() -> None:
    async def breaks(request: Request, body: bytes) -> Answer:
        yield Tokens(0, (1000,), WORDS[0])
        raise RegionFailure("frankfurt", Failure("engine", "it broke", 500, True))

    full = refusing("dubai", "overloaded", 503, retryable=True)
    regions = upstream(frankfurt=breaks, dubai=full)
    trip = Trip(regions)
    trip.forwarder.budget.share = trip.forwarder.budget.min_per_s = 0.0
    await trip.run()
    assert trip.text == TEXT
    assert sent(regions) == ["frankfurt", "dubai", "singapore"]


async def test_tokens_that_another_region_refuses_are_not_the_clients_fault() -> None:
    """A region that lies about tokens harms its own answer, and no other region's."""

    async def lies(request: Request, body: bytes) -> Answer:
        yield Tokens(0, (2**31,), "x")
        raise PathDown("frankfurt", "it was cut")

    async def strict(request: Request, body: bytes) -> Answer:
        if request.resume_tokens:
            text = "resume_tokens[0] cannot be a token of this answer."
            failure = Failure("invalid", text, 400, False, "resume_tokens")
            raise RegionFailure("dubai", failure)
        async for frame in answering("dubai")(request, body):
            yield frame

    others = dict.fromkeys(("dubai", "singapore"), strict)
    with pytest.raises(AttemptsExhausted) as caught:
        await Trip(upstream(frankfurt=lies, **others)).run()
    assert isinstance(caught.value.last, OverlayProtocolError)
    trip = Trip(upstream(frankfurt=lies, **others), stream=False)  # nobody has seen any of it
    await trip.run()
    assert "".join(trip.attempts.text) == TEXT


async def test_an_overloaded_region_is_left_for_another() -> None:
    regions = upstream(frankfurt=refusing("frankfurt", "overloaded", 503, retryable=True))
    trip = Trip(regions)
    await trip.run()
    assert trip.text == TEXT
    assert sent(regions) == ["frankfurt", "dubai"]


@pytest.mark.parametrize("stream", [True, False])
async def test_residency_holds_for_retries(stream: bool) -> None:
    regions = upstream()
    regions.regions["frankfurt"] = dying("frankfurt", 2, cut=regions)
    with pytest.raises(AttemptsExhausted) as caught:
        await Trip(regions, stream=stream, tenant="eurobank").run()
    assert sent(regions) == ["frankfurt"]
    assert caught.value.streaming == stream


async def test_a_way_that_gave_tokens_is_gone_again_when_it_lives_again() -> None:
    regions = upstream(frankfurt=dying("frankfurt", 1))
    trip = Trip(regions, tenant="eurobank")
    await trip.run()
    assert trip.text == TEXT
    assert sent(regions) == ["frankfurt"] * (len(WORDS) + 1) and len(WORDS) > MOST_WAYS


async def test_a_region_that_became_unreachable_meanwhile_is_skipped() -> None:
    regions = upstream()

    async def cutting(request: Request, body: bytes) -> Answer:
        regions.cut("dubai")
        raise PathDown("frankfurt", "it was cut")
        yield

    regions.regions["frankfurt"] = cutting
    trip = Trip(regions)
    await trip.run()
    assert sent(regions) == ["frankfurt", "singapore"]


async def test_a_path_that_is_down_at_sending_counts_as_tried() -> None:
    regions = upstream()
    trip = Trip(regions)  # has decided for frankfurt
    regions.cut("frankfurt")
    await trip.run()
    assert trip.text == TEXT
    assert trip.attempts.tried == ["frankfurt", "dubai"]


async def test_nobody_to_ask() -> None:
    regions = upstream()
    for name in RTT_MS:
        regions.cut(name)
    with pytest.raises(Refused) as caught:
        await Trip(regions).run()
    assert caught.value.decision.refusal == "no_region"


async def test_a_silent_region_is_left_for_another_and_told_so() -> None:
    regions = upstream(frankfurt=silent("frankfurt"))
    trip = Trip(regions, silence_s=0.1)
    await trip.run()
    assert trip.text == TEXT
    assert sent(regions) == ["frankfurt", "dubai"]
    assert regions.cancelled == 1
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_silence_in_the_middle_is_continued_elsewhere() -> None:
    async def stalls(request: Request, body: bytes) -> Answer:
        yield Tokens(0, (1000,), WORDS[0])
        await asyncio.sleep(3600)

    regions = upstream(frankfurt=stalls)
    trip = Trip(regions, silence_s=0.1)
    await trip.run()
    assert trip.text == TEXT
    assert regions.sent[1][1].resume_tokens == (1000,)


async def test_all_silent() -> None:
    regions = upstream(**{name: silent(name) for name in RTT_MS})
    with pytest.raises(AttemptsExhausted) as caught:
        await Trip(regions, silence_s=0.05).run()
    assert isinstance(caught.value.last, RegionSilent)
    assert sent(regions) == list(RTT_MS)


async def test_the_deadline_outranks_silence_and_shrinks_with_every_attempt() -> None:
    regions = upstream(frankfurt=silent("frankfurt"), dubai=silent("dubai"))
    trip = Trip(regions, silence_s=0.2, deadline_s=0.35)
    with pytest.raises(asyncio.CancelledError):
        await trip.run()
    assert trip.flight.cause is Cause.DEADLINE
    first, second = (request.deadline_ms for _, request, _ in regions.sent)
    assert second <= first - 190


async def test_tokens_out_of_place_are_a_fault_of_the_region() -> None:
    async def skips(request: Request, body: bytes) -> Answer:
        yield Tokens(0, (1000,), WORDS[0])
        yield Tokens(5, (1005,), WORDS[5])

    regions = upstream(frankfurt=skips)
    trip = Trip(regions)
    await trip.run()
    assert trip.text == TEXT


@pytest.mark.parametrize("ids", [True, False])
async def test_an_endless_answer_is_given_up(ids: bool) -> None:
    async def endless(request: Request, body: bytes) -> Answer:
        for n in range(10**9):
            yield Tokens(n if ids else 0, (n,) if ids else (), "x" if ids else "x" * 1000)

    regions = upstream(**dict.fromkeys(RTT_MS, endless))
    trip = Trip(regions)
    with pytest.raises(AttemptsExhausted):
        await trip.run()
    assert sent(regions) == (["frankfurt", "dubai", "singapore"] if ids else ["frankfurt"])
    assert len(trip.text) <= 20 * 256


def _without_ids(region: str, after: int) -> Region:
    """A foreign engine: text, but no token ids; cut after some pieces."""

    async def answer(request: Request, body: bytes) -> Answer:
        assert request.resume_tokens == ()
        yield Accept(0.0, 0.0, region, "foreign")
        for word in WORDS[:after]:
            yield Tokens(0, (), word)
        raise PathDown(region, "it was cut")

    return answer


async def test_without_ids_a_whole_answer_is_begun_anew() -> None:
    regions = upstream(frankfurt=_without_ids("frankfurt", 3))
    trip = Trip(regions, stream=False)
    await trip.run()
    assert "".join(trip.attempts.text) == TEXT


async def test_without_ids_a_stream_that_was_shown_ends_with_an_error() -> None:
    regions = upstream(frankfurt=_without_ids("frankfurt", 3))
    trip = Trip(regions)
    with pytest.raises(AttemptsExhausted) as caught:
        await trip.run()
    assert caught.value.streaming
    assert sent(regions) == ["frankfurt"]


async def test_closing_tells_the_region() -> None:
    regions = upstream(frankfurt=answering("frankfurt", pause_s=0.01))
    trip = Trip(regions)
    await trip.attempts.next()
    trip.attempts.close()
    trip.attempts.close()
    trip.flights.close(trip.flight)
    assert (regions.cancelled, trip.figures.cancelled) == (1, 1)


# Invariant: a stream is never duplicated, reordered or cut while another region may serve it.


def _chunked(region: str, sizes: list[int], cut_after: int | None) -> Region:
    """Sends tokens in runs of the given sizes, and is cut after so many runs."""

    async def answer(request: Request, body: bytes) -> Answer:
        position = len(request.resume_tokens)
        for run, size in enumerate(sizes * len(WORDS)):
            if run == cut_after:
                raise PathDown(region, "it was cut")
            if position >= len(WORDS):
                break
            words = WORDS[position : position + size]
            yield Tokens(position, tuple(range(position, position + len(words))), "".join(words))
            position += len(words)
        yield End("stop", 7, len(WORDS), 0.0)

    return answer


RUNS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(RUNS, RUNS, RUNS, st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_whatever_dies_the_client_reads_the_answer_once(
    first: list[int], second: list[int], third: list[int], cut1: int, cut2: int, stream: bool
) -> None:
    async def run() -> None:
        regions = upstream(
            frankfurt=_chunked("frankfurt", first, cut1),
            dubai=_chunked("dubai", second, cut2),
            singapore=_chunked("singapore", third, None),
        )
        trip = Trip(regions, stream=stream)
        await trip.run()
        assert "".join(trip.attempts.text) == TEXT
        assert trip.text == TEXT
        assert trip.attempts.ids == list(range(len(WORDS)))
        assert len(set(sent(regions))) == len(regions.sent)

    asyncio.run(run())


async def test_what_could_not_be_sent_keeps_nobody_alive_who_reads_it() -> None:
    class Held:
        """Stands for the client's stream."""

    async def read(exchange: Unsent, held: Held) -> None:
        with contextlib.suppress(PathDown):
            await exchange.next()

    held = Held()
    alive = weakref.ref(held)
    gc.disable()  # an edge's collector runs too rarely to end a client's stream
    try:
        await read(Unsent(PathDown("frankfurt", "it was cut")), held)
        del held
        assert alive() is None
    finally:
        gc.enable()

"""Clients that share an answer: each gets it whole, in its form, at its pace, and once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from edge_node.forward.memory import Answer, Region
from tests.edge_node.crowds import Client, Crowd, in_loop, small_buffers
from tests.edge_node.worlds import (
    EUROBANK,
    RTT_MS,
    TEXT,
    answering,
    ask,
    dying,
    refusing,
    silent,
    snapshot,
    upstream,
)
from tests.topology.worlds import document
from topology.overlay.errors import RegionFailure
from topology.overlay.frames import Accept, End, Failure, Request, Tokens

pytestmark = pytest.mark.usefixtures("small_buffers")
__all__ = ["small_buffers"]

Story = Callable[[Crowd], Awaitable[None]]
PAUSE_S = 0.1  # between two of the nine words


def tell(
    story: Story, region: Region | None = None, *extra: dict[str, Any], **regions: Region
) -> None:
    """Let it happen at an edge whose nearest region answers so; nothing may be left of it."""
    first = region or answering("frankfurt", pause_s=PAUSE_S, first_s=0.2)
    extra = extra or (policy(),)

    async def main() -> None:
        crowd = Crowd(upstream(frankfurt=first, **regions), snapshot(*extra))
        await story(crowd)
        await crowd.settled()

    in_loop(main())


def policy(**spec: Any) -> dict[str, Any]:
    """What is sent is counted here, so nothing is sent twice for being late."""
    return document("Policy", "default", retries={"hedge": False}, **spec)


# Who shares


@pytest.mark.parametrize("when_s", [0.0, 0.1, 0.25, 0.65, 1.05])
@pytest.mark.parametrize("first", [False, True])
def test_whenever_others_come_each_has_its_own_form(when_s: float, first: bool) -> None:
    async def story(crowd: Crowd) -> None:
        crowd.ask(stream=first)
        await asyncio.sleep(when_s)
        usage = {"include_usage": True}
        crowd.ask(stream=True)
        crowd.ask(stream=True, stream_options=usage)
        crowd.ask()
        await crowd.served()
        assert len(crowd.regions.sent) == 1
        assert [client.text for client in crowd.clients] == [TEXT] * 4
        assert all(client.whole for client in crowd.clients)
        kinds = [client.headers["content-type"].split(";")[0] for client in crowd.clients[1:]]
        assert kinds == ["text/event-stream", "text/event-stream", "application/json"]
        assert b'"total_tokens":16' in crowd.clients[2].chunks[-1]
        assert b"total_tokens" not in b"".join(crowd.clients[1].chunks)
        for client in crowd.clients[1:]:
            assert client.headers["x-tradewind-served-by"] == "region"
            assert client.headers["x-tradewind-shared"] == "1"
        names = {client.headers["x-tradewind-request-id"] for client in crowd.clients}
        assert len(names) == 4
        assert crowd.sharing.coalesced == 3
        later = crowd.ask()
        await crowd.served()
        assert later.headers["x-tradewind-served-by"] == "cache"

    tell(story)


def test_who_comes_late_is_given_at_once_what_has_come_and_then_with_the_others() -> None:
    async def story(crowd: Crowd) -> None:
        first = crowd.ask(stream=True)
        await asyncio.sleep(0.65)  # four words
        second = crowd.ask(stream=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert first.text == second.text == "The trade winds carried"
        await asyncio.sleep(0.1)
        assert first.text == second.text == "The trade winds carried ships"

    tell(story)


def test_an_unshared_request_is_served_by_its_own_task_alone() -> None:
    async def story(crowd: Crowd) -> None:
        client = crowd.ask(stream=True)
        await asyncio.sleep(0.5)
        assert len([t for t in asyncio.all_tasks() if t.get_coro().__name__ == "_go_on"]) == 0  # type: ignore[union-attr]
        await crowd.served()
        assert client.whole and "x-tradewind-shared" not in client.headers

    tell(story)


@pytest.mark.parametrize(
    ("body", "client"),
    [
        ({"temperature": 1}, {}),
        ({"seed": 4}, {}),
        ({"max_tokens": 3}, {}),
        ({"messages": [{"role": "user", "content": "Where from?"}]}, {}),
        ({}, {"key": EUROBANK}),
        ({}, {"cache_control": "no-store"}),
        ({}, {"cache_control": "no-cache"}),
    ],
)
def test_other_requests_do_not_share(body: dict[str, Any], client: dict[str, Any]) -> None:
    async def story(crowd: Crowd) -> None:
        crowd.ask()
        crowd.come(Client(ask(temperature=0) | body, **client))
        crowd.come(Client(ask(temperature=0) | body, **client))
        crowd.ask()
        await crowd.served()
        alone = "cache_control" in client or body == {"temperature": 1}
        assert len(crowd.regions.sent) == (3 if alone else 2)
        assert all(c.whole for c in crowd.clients)

    tell(story)


@pytest.mark.parametrize("off", [{"cache": {"coalesce": False}}, {"overload": {"protect": False}}])
def test_it_can_be_turned_off(off: dict[str, Any]) -> None:
    async def story(crowd: Crowd) -> None:
        for _ in range(3):
            crowd.ask()
        await crowd.served()
        assert len(crowd.regions.sent) == 3

    tell(story, None, policy(**off))


# Repeats of one id


def test_a_repeat_of_an_id_is_given_the_answer_under_way_whatever_it_is() -> None:
    async def story(crowd: Crowd) -> None:
        for _ in range(3):
            crowd.come(Client(ask(stream=True), x_request_id="trace-7"))
            crowd.come(Client(ask(stream=True), idempotency_key="trace-7"))
        crowd.come(Client(ask(stream=True), idempotency_key="trace-7", x_request_id="other"))
        crowd.come(Client(ask(stream=True), x_request_id="trace-8"))
        crowd.come(Client(ask(stream=True)))
        await crowd.served()
        assert len(crowd.regions.sent) == 3
        assert crowd.sharing.repeats == 6
        assert all(c.text == TEXT and c.whole for c in crowd.clients)

    tell(story)


def test_an_id_with_another_body_or_of_another_tenant_is_another_request() -> None:
    async def story(crowd: Crowd) -> None:
        crowd.come(Client(ask(), x_request_id="trace-7"))
        crowd.come(Client(ask(max_tokens=5), x_request_id="trace-7"))
        crowd.come(Client(ask(), x_request_id="trace-7", key=EUROBANK))
        crowd.come(Client(ask(), x_request_id="not a sane one"))
        crowd.come(Client(ask(), x_request_id="not a sane one"))
        await crowd.served()
        assert len(crowd.regions.sent) == 5
        assert crowd.sharing.repeats == 0

    tell(story)


# Leaving


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when_s", [0.05, 0.1, 0.3, 0.65])
def test_the_first_client_leaves_and_the_others_do_not_notice(when_s: float, stream: bool) -> None:
    async def story(crowd: Crowd) -> None:
        first = crowd.ask(stream=stream)
        await asyncio.sleep(when_s)
        second, third = crowd.ask(stream=True), crowd.ask()
        await asyncio.sleep(0.12)
        first.leave()
        await crowd.served()
        assert second.text == third.text == TEXT
        assert len(crowd.regions.sent) == 1 and crowd.regions.cancelled == 0
        assert crowd.sharing.detached == 1

    tell(story)


@pytest.mark.parametrize("stream", [False, True])
def test_each_client_has_its_own_deadline(stream: bool) -> None:
    async def story(crowd: Crowd) -> None:
        first = crowd.ask({"x_tradewind_deadline_ms": "400"}, stream=stream)
        await asyncio.sleep(0.05)
        second = crowd.ask({"x_tradewind_deadline_ms": "600"}, stream=stream)
        third = crowd.ask(stream=stream)
        await asyncio.sleep(0.42)
        assert first.error == "deadline_exceeded" and second.error == ""
        await asyncio.sleep(0.25)
        assert second.error == "deadline_exceeded"
        assert second.status == first.status == (200 if stream else 504)
        await crowd.served()
        assert third.whole and third.text == TEXT
        assert len(crowd.regions.sent) == 1

    tell(story)


def test_a_client_that_repeats_its_request_after_its_deadline_finds_the_answer() -> None:
    async def story(crowd: Crowd) -> None:
        first = crowd.ask({"x_tradewind_deadline_ms": "400"})
        await asyncio.sleep(0.5)
        assert first.error == "deadline_exceeded"
        again = crowd.ask()
        await crowd.served()
        assert again.whole and len(crowd.regions.sent) == 1
        assert crowd.sharing.lingered == 1

    tell(story)


def test_an_answer_that_nobody_waits_for_is_kept_when_it_comes_in_time() -> None:
    async def story(crowd: Crowd) -> None:
        for stream in (False, True):
            client = crowd.ask(stream=stream, seed=int(stream))
            await asyncio.sleep(0.4)
            client.leave()
        await asyncio.sleep(2.0)
        for stream in (False, True):
            later = crowd.ask(stream=stream, seed=int(stream))
            await asyncio.sleep(0)
            assert later.headers["x-tradewind-served-by"] == "cache"
        assert crowd.sharing.lingered == 2

    tell(story)


def test_one_who_waits_briefly_for_what_lingers_does_not_end_it() -> None:
    async def story(crowd: Crowd) -> None:
        first = crowd.ask()
        await asyncio.sleep(0.4)
        first.leave()
        await asyncio.sleep(0.01)
        assert crowd.sharing.lingered == 1
        brief = crowd.ask({"x_tradewind_deadline_ms": "1"})
        await asyncio.sleep(0.001)
        assert [work.flight.deadline > 2.0 for work in crowd.sharing._works.values()] == [True]
        await asyncio.sleep(0.1)
        assert brief.error == "deadline_exceeded"
        later = crowd.ask()
        await crowd.served()
        assert later.whole and len(crowd.regions.sent) == 1

    tell(story)


def test_the_last_deadline_of_many_does_not_end_it() -> None:
    """Whichever of the limits that strike together is looked at first."""

    async def story(crowd: Crowd) -> None:
        for seed in range(8):
            for _ in range(2):
                crowd.ask({"x_tradewind_deadline_ms": "400"}, seed=seed)
        await asyncio.sleep(0.5)
        assert {client.error for client in crowd.clients} == {"deadline_exceeded"}
        later = [crowd.ask(seed=seed) for seed in range(8)]
        await crowd.served()
        assert all(client.whole for client in later)
        assert len(crowd.regions.sent) == 8

    tell(story)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("gone_s", [0.0, 0.201, 0.25])
def test_an_answer_that_its_client_turns_out_not_to_take_is_there_for_others(
    stream: bool, gone_s: float
) -> None:
    async def story(crowd: Crowd) -> None:
        first = crowd.ask(stream=stream)
        await asyncio.sleep(gone_s)
        first.gone = True  # nobody is told; it is seen when it is sent something
        await asyncio.sleep(0.6)
        later = crowd.ask()
        await crowd.served()
        assert later.whole and len(crowd.regions.sent) == 1

    tell(story)


def test_an_answer_that_nobody_waits_for_ends_after_a_while() -> None:
    async def story(crowd: Crowd) -> None:
        client = crowd.ask()
        await asyncio.sleep(0.4)
        client.leave()
        await asyncio.sleep(0.15)
        assert len(crowd.app.flights) == 1
        await asyncio.sleep(0.1)
        assert len(crowd.app.flights) == 0 and crowd.regions.cancelled == 1

    tell(story, None, policy(cache={"linger_s": 0.2}))


@pytest.mark.parametrize("shared", [False, True])
def test_without_lingering_the_last_to_leave_ends_it(shared: bool) -> None:
    async def story(crowd: Crowd) -> None:
        crowd.ask()
        if shared:
            await asyncio.sleep(0.1)
            crowd.ask(stream=True)
        await asyncio.sleep(0.4)
        for client in crowd.clients:
            assert crowd.regions.cancelled == 0
            client.leave()
        await asyncio.sleep(0.06)
        assert crowd.regions.cancelled == 1

    tell(story, None, policy(cache={"linger_s": 0}))


def test_what_could_not_be_had_again_does_not_linger() -> None:
    async def story(crowd: Crowd) -> None:
        for client in (Client(ask()), Client(ask(), x_request_id="trace-7")):
            crowd.come(client)
            await asyncio.sleep(0.4)
            client.leave()
            await asyncio.sleep(0.05)
        assert crowd.sharing.lingered == 1 and crowd.regions.cancelled == 1

    tell(story)


def test_only_so_many_linger() -> None:
    async def story(crowd: Crowd) -> None:
        crowd.sharing.lingering_max = 3
        for seed in range(5):
            crowd.ask(seed=seed)
        await asyncio.sleep(0.4)
        for client in crowd.clients:
            client.leave()
        await asyncio.sleep(0.05)
        assert len(crowd.sharing._lingering) == 3 and crowd.regions.cancelled == 2

    tell(story)


def strict(region: str, *, at_once: bool) -> Region:
    """A region that stops an answer at the deadline that it was told, or does not begin one that
    it cannot end by then."""

    async def answer(request: Request, body: bytes) -> Answer:
        failure = RegionFailure(region, Failure("deadline", "too late", 504, retryable=False))
        if at_once and request.deadline_ms < 1_000:
            await asyncio.sleep(0.1)
            raise failure
        until = asyncio.get_running_loop().time() + request.deadline_ms / 1000
        async for frame in answering(region, pause_s=PAUSE_S)(request, body):
            if asyncio.get_running_loop().time() >= until:
                raise failure
            yield frame

    return answer


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_the_first_ones_deadline_is_not_the_others(stream: bool, at_once: bool) -> None:
    async def story(crowd: Crowd) -> None:
        first = crowd.ask({"x_tradewind_deadline_ms": "400"}, stream=stream)
        await asyncio.sleep(0.05)
        second = crowd.ask({"x_tradewind_deadline_ms": "800"}, stream=True)
        third = crowd.ask(stream=stream)
        await crowd.served()
        assert first.error == "deadline_exceeded"
        assert second.error == "deadline_exceeded"
        assert third.whole and third.text == TEXT
        assert {region for region, _, _ in crowd.regions.sent} == {"frankfurt"}
        assert crowd.app.forwarder.budget.spent == 0

    tell(story, strict("frankfurt", at_once=at_once))


@pytest.mark.parametrize("all_leave", [False, True])
def test_they_wait_for_room_together(all_leave: bool) -> None:
    """One region, one at a time: the place in the waiting room is kept when the first leaves, and
    given up when all have."""

    async def story(crowd: Crowd) -> None:
        crowd.ask(seed=1)
        await asyncio.sleep(0.1)
        first = crowd.ask(stream=True)
        await asyncio.sleep(0.1)
        second = crowd.ask()
        await asyncio.sleep(0.1)
        assert len(crowd.regions.sent) == 1 and len(crowd.app.entry.room) == 1
        first.leave()
        if all_leave:
            second.leave()
        await asyncio.sleep(0.1)
        assert len(crowd.app.entry.room) == (0 if all_leave else 1)
        await crowd.served()
        assert second.gone or second.text == TEXT
        assert len(crowd.regions.sent) == (1 if all_leave else 2)
        assert crowd.sharing.lingered == 0

    one = {"concurrency_min": 1, "concurrency_max": 1}
    only = document("Model", "small", regions=["frankfurt"], context_tokens=2048)
    tell(story, None, policy(overload=one), only)


# Failing


@pytest.mark.parametrize("stream", [False, True])
def test_a_region_that_dies_midway_is_noticed_by_nobody(stream: bool) -> None:
    async def story(crowd: Crowd) -> None:
        crowd.ask(stream=stream)
        crowd.ask(stream=True)
        crowd.ask()
        await crowd.served()
        assert [c.text for c in crowd.clients] == [TEXT] * 3
        assert all(c.whole for c in crowd.clients)

    tell(story, dying("frankfurt", 4))


@pytest.mark.parametrize("stream", [False, True])
def test_all_are_told_of_one_failure_each_with_its_own_headers(stream: bool) -> None:
    async def story(crowd: Crowd) -> None:
        for number in range(3):
            crowd.ask({"x_request_id": f"id-{number}"}, stream=stream)
        await crowd.served()
        for number, client in enumerate(crowd.clients):
            assert (client.status, client.error) == (503, "overloaded")
            assert client.headers["x-request-id"] == f"id-{number}"
        assert len({r.request_id for _, r, _ in crowd.regions.sent}) == 1  # all of one request

    overloaded = {name: refusing(name, "overloaded", 503, retryable=True) for name in RTT_MS}
    tell(story, overloaded.pop("frankfurt"), **overloaded)


def test_they_are_not_all_told_to_come_back_at_once() -> None:
    async def full(request: Request, body: bytes) -> Answer:
        await asyncio.sleep(0.1)
        failure = Failure("overloaded", "full", 503, retryable=False, retry_after_ms=10_000)
        raise RegionFailure("frankfurt", failure)
        yield

    async def story(crowd: Crowd) -> None:
        for n in range(20):
            crowd.ask(stream=n % 2 == 0)
        await crowd.served()
        told = sorted(int(client.headers["retry-after-ms"]) for client in crowd.clients)
        assert told[0] >= 10_000 and told[-1] <= 15_000
        assert max(b - a for a, b in pairwise(told)) < 1_000

    tell(story, full)


def test_a_stream_that_cannot_go_on_ends_with_an_error_for_all() -> None:
    async def foreign(request: Request, body: bytes) -> Answer:
        yield Accept(0.0, 0.1, "frankfurt", "memory")
        yield Tokens(0, (), "The")
        await asyncio.sleep(0.5)
        async for frame in dying("frankfurt", 0)(request, body):
            yield frame

    async def story(crowd: Crowd) -> None:
        crowd.ask()  # alone, it would be begun anew
        await asyncio.sleep(0.1)
        crowd.ask(stream=True)
        crowd.ask()
        await crowd.served()
        assert {c.error for c in crowd.clients} == {"region_unreachable"}
        assert crowd.clients[1].text == "The"

    tell(story, foreign)


def test_a_fault_of_ours_is_told_to_all_without_its_details() -> None:
    async def broken(request: Request, body: bytes) -> Answer:
        yield Accept(0.0, 0.1, "frankfurt", "memory")
        await asyncio.sleep(0.5)
        raise ZeroDivisionError("a secret")

    async def story(crowd: Crowd) -> None:
        for _ in range(3):
            crowd.ask()
        await crowd.served()
        for client in crowd.clients:
            assert (client.status, client.error) == (500, "internal_error")
            assert b"secret" not in client.chunks[0]

    tell(story, broken)


def test_the_shutdown_is_told_to_all() -> None:
    async def story(crowd: Crowd) -> None:
        for stream in (True, True, False):
            crowd.ask(stream=stream)
        await asyncio.sleep(0.4)
        await crowd.app.drain(0.1)
        assert {c.error for c in crowd.clients} == {"shutting_down"}

    tell(story)


# Slow readers


@pytest.mark.parametrize("first", [False, True])
def test_a_client_that_reads_nothing_slows_nobody(first: bool) -> None:
    words = tuple(f" {'x' * 60}{n}" for n in range(100))

    async def story(crowd: Crowd) -> None:
        slow: dict[str, Any] = {"reads_per_s": 0, "x_tradewind_deadline_ms": "5000"}
        if not first:
            crowd.ask(stream=True)
            await asyncio.sleep(0.1)
        stuck = crowd.ask(slow, stream=True)
        await asyncio.sleep(0.1)
        if first:
            await asyncio.sleep(0.5)
            assert stuck.sent_bytes > 600
        others = [crowd.ask(stream=True), crowd.ask()]
        begun = crowd.loop.time()
        await asyncio.gather(*(c.task for c in crowd.clients if c.task and c is not stuck))
        assert crowd.loop.time() - begun < 1.5
        assert {c.text for c in others} == {"".join(words)}
        assert stuck.sent_bytes < 2_000 and not stuck.whole
        await crowd.served()
        assert stuck.error == "deadline_exceeded"
        assert len(crowd.regions.sent) == 1

    tell(story, answering("frankfurt", words, pause_s=0.01))


def test_a_slow_client_has_it_all_in_the_end() -> None:
    words = tuple(f" {'x' * 60}{n}" for n in range(100))

    async def story(crowd: Crowd) -> None:
        crowd.ask(stream=True)
        await asyncio.sleep(0.1)
        slow = crowd.ask({"reads_per_s": 2_000.0}, stream=True)
        await crowd.served()
        assert slow.text == "".join(words) and slow.whole
        assert crowd.loop.time() > 3.0

    tell(story, answering("frankfurt", words, pause_s=0.01))


# The very turn


def test_joining_and_leaving_in_the_turn_in_which_it_ends() -> None:
    """The region ends after `turns` turns of the loop; somebody comes, or goes, after each."""

    def ending(turns: int) -> Region:
        async def answer(request: Request, body: bytes) -> Answer:
            yield Accept(0.0, 0.1, "frankfurt", "memory")
            yield Tokens(0, (1,), "yes")
            for _ in range(turns):
                await asyncio.sleep(0)
            yield End("stop", 1, 1, 0.1)

        return answer

    async def story(crowd: Crowd) -> None:
        for stream in (False, True):
            for turns in range(24):
                first = crowd.ask(stream=stream, seed=turns)
                for _ in range(turns):
                    await asyncio.sleep(0)
                crowd.ask(stream=True, seed=turns)
                if turns % 3 == 0:
                    first.leave()
                    flight = next(iter(crowd.app.flights._flights), None)
                    if flight is not None:
                        flight.strike(crowd.loop.time() + 60.0 * (turns % 2))
                crowd.ask(seed=turns)
                await crowd.served()
                for client in crowd.clients:
                    assert client is first or client.text == "yes"
                crowd.clients.clear()
                await crowd.quiet()

    tell(story, ending(12), dubai=ending(12), singapore=ending(12))


def test_who_joins_a_request_that_is_being_cancelled_begins_another() -> None:
    async def story(crowd: Crowd) -> None:
        first = crowd.ask()
        await asyncio.sleep(0.4)
        assert first.leaving is not None
        first.leave()
        await asyncio.sleep(0)  # its flight knows, its task does not yet
        second = crowd.ask()
        await crowd.served()
        assert second.whole and len(crowd.regions.sent) == 2

    tell(story, None, policy(cache={"linger_s": 0}))


def test_silence_is_noticed_after_the_deadline_was_moved() -> None:
    """The first one's deadline is sooner than the limit for silence, the second one's is not."""

    async def story(crowd: Crowd) -> None:
        first = crowd.ask({"x_tradewind_deadline_ms": "500"})
        await asyncio.sleep(0.1)
        second = crowd.ask()
        await crowd.served()
        assert first.error == "deadline_exceeded"
        assert second.whole and crowd.loop.time() < 3.0

    tell(story, silent("frankfurt"), policy(first_token_timeout_ms=1000))

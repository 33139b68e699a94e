"""Full regions in front of a real edge: who waits, who goes elsewhere, who is given less."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from edge_node.forward.memory import Answer, MemoryUpstream
from edge_node.models.memory import MemoryModel
from tests.edge_node.worlds import (
    ACME,
    EUROBANK,
    MODEL,
    RTT_MS,
    TEXT,
    Edge,
    answering,
    ask,
    events,
    post,
    refusing,
    running,
    snapshot,
    streamed_text,
    tenant,
    upstream,
)
from tests.topology import worlds
from topology.overlay.errors import PathDown, RegionFailure
from topology.overlay.frames import Accept, End, Failure, Request, Tokens
from topology.snapshot import Snapshot

QUALITY = "x-tradewind-quality"
GLOBEX = "sk-globex-0123456789"
PATIENT = {"wait_ms": 10_000.0}


class Held:
    """Regions whose answers end when they are let go, one after the other."""

    def __init__(self) -> None:
        self.places: list[asyncio.Future[None]] = []
        regions = {name: self.region(name) for name in RTT_MS}
        self.upstream = MemoryUpstream(regions, RTT_MS)

    def region(self, name: str) -> Callable[[Request, bytes], Answer]:
        async def answer(request: Request, body: bytes) -> Answer:
            place = asyncio.get_running_loop().create_future()
            self.places.append(place)
            yield Accept(0.0, 0.1, name, "memory")
            yield Tokens(0, (1,), TEXT)
            await place
            yield End("stop", 7, 1, 0.1)

        return answer

    def let_go(self) -> None:
        """The oldest that is held."""
        next(place for place in self.places if not place.done()).set_result(None)

    @property
    def held(self) -> int:
        return sum(not place.done() for place in self.places)


def narrow(*extra: dict[str, Any], regions: list[str] | None = None, **overload: Any) -> Snapshot:
    """Each region takes one request of this edge at once, of each tier."""
    tiers = overload.pop("tiers", {"vip": PATIENT, "standard": PATIENT, "batch": PATIENT})
    policy: dict[str, Any] = {
        "overload": {"concurrency_min": 1, "concurrency_max": 1, "tiers": tiers, **overload},
        "ladder": overload.pop("ladder", [{"quality": q} for q in RUNGS]),
    }
    policy["overload"].pop("ladder", None)
    return snapshot(
        tenant("acme", ACME),
        tenant("globex", GLOBEX),
        worlds.document("Policy", "default", **policy),
        worlds.document(
            "Route", "all", models=["*"], tenants=["*"], regions=regions or ["frankfurt"]
        ),
        *extra,
    )


RUNGS = ("full", "other-region", "queued", "quantised", "edge-model", "stale", "refused")


def told(edge: Edge, tier: str = "standard") -> dict[str, int]:
    counts = edge.app.entry.ladders[tier].counts.by_quality  # type: ignore[index]
    return {quality: count for quality, count in counts.items() if count}


async def test_the_next_region_takes_what_the_first_has_no_room_for() -> None:
    held = Held()
    async with running(held.upstream, narrow(regions=["frankfurt", "dubai"])) as edge:
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        second = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 2)
        held.let_go()
        held.let_go()
        replies = [await first, await second]
    assert [(r.headers[QUALITY], r.headers["x-tradewind-region"]) for r in replies] == [
        ("full", "frankfurt"),
        ("other-region", "dubai"),
    ]
    assert told(edge) == {"full": 1, "other-region": 1}


async def test_who_waits_is_let_in_when_there_is_room() -> None:
    held = Held()
    async with running(held.upstream, narrow()) as edge:
        tasks = [asyncio.create_task(post(edge, ask(stream=stream))) for stream in (False, True)]
        await edge.until(lambda: held.held == 1 and len(edge.app.entry.room) == 1)
        assert len(held.upstream.sent) == 1
        held.let_go()
        await edge.until(lambda: len(held.places) == 2)
        held.let_go()
        replies = [await task for task in tasks]
    assert sorted(reply.headers[QUALITY] for reply in replies) == ["full", "queued"]
    assert streamed_text(events(replies[1].text)) == TEXT


async def test_vip_goes_before_others_that_wait() -> None:
    held, key = Held(), "sk-vips-0123456789"
    config = narrow(tenant("vips", key, tier="vip"), concurrency_min=2, concurrency_max=2)
    async with running(held.upstream, config) as edge:
        tasks = []
        for count, whose in enumerate((ACME, key), 1):
            tasks.append(asyncio.create_task(post(edge, ask(), key=whose)))
            await edge.until(lambda count=count: held.held == count)
        for count, whose in enumerate((ACME, key), 1):
            tasks.append(asyncio.create_task(post(edge, ask(), key=whose)))
            await edge.until(lambda count=count: len(edge.app.entry.room) == count)
        held.let_go()
        await edge.until(lambda: len(held.places) >= 3)
        assert [request.tenant for _, request, _ in held.upstream.sent[:3]] == [
            "acme", "vips", "vips",
        ]  # fmt: skip
        await edge.until(lambda: held.held == 3 or held.held == 2)
        while any(not task.done() for task in tasks):
            if held.held:
                held.let_go()
            await asyncio.sleep(0.01)
        assert [task.result().headers[QUALITY] for task in tasks] == [
            "full", "full", "queued", "queued",
        ]  # fmt: skip


async def test_nobody_waits_longer_than_its_tier_may() -> None:
    held = Held()
    config = narrow(tiers={"standard": {"wait_ms": 150.0}}, waiting_max=8)
    async with running(held.upstream, config) as edge:
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        reply = await post(edge, ask())
        held.let_go()
        await first
    assert reply.status_code == 503
    assert reply.headers[QUALITY] == "refused"
    assert reply.json()["error"]["code"] == "overloaded"
    assert int(reply.headers["retry-after"]) >= 1
    assert int(reply.headers["retry-after-ms"]) >= 100
    assert told(edge)["refused"] == 1
    assert len(edge.app.entry.room) == 0


async def test_a_full_room_refuses_at_once() -> None:
    held = Held()
    async with running(held.upstream, narrow(waiting_max=1)) as edge:
        tasks = [asyncio.create_task(post(edge, ask())) for _ in range(2)]
        await edge.until(lambda: len(edge.app.entry.room) == 1)
        reply = await post(edge, ask())
        assert reply.status_code == 503
        # Another tenant takes no place of one that has just one.
        assert (await post(edge, ask(), key=GLOBEX)).status_code == 503
        for count in (1, 2):
            await edge.until(lambda count=count: len(held.places) == count)
            held.let_go()
        assert [(await task).status_code for task in tasks] == [200, 200]


async def test_who_leaves_leaves_the_room_too() -> None:
    held = Held()
    async with running(held.upstream, narrow()) as edge:
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        with pytest.raises(httpx.ReadTimeout):
            async with httpx.AsyncClient(timeout=0.3) as client:
                headers = {"authorization": f"Bearer {ACME}"}
                await client.post(edge.chat_url, content=json.dumps(ask()), headers=headers)
        await edge.until(lambda: len(edge.app.entry.room) == 0 and len(edge.app.flights) == 1)
        assert len(held.upstream.sent) == 1
        held.let_go()
        await first


async def test_the_deadline_ends_the_wait() -> None:
    held = Held()
    async with running(held.upstream, narrow()) as edge:
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        reply = await post(edge, ask(), x_tradewind_deadline_ms="200")
        assert reply.status_code in (503, 504)
        assert len(edge.app.entry.room) == 0
        assert len(held.upstream.sent) == 1
        held.let_go()
        await first


async def test_another_model_stands_in() -> None:
    held = Held()
    ready = MemoryUpstream(
        {"frankfurt": held.region("frankfurt"), "dubai": answering("dubai")}, RTT_MS
    )
    config = narrow(
        worlds.document(
            "Model", MODEL, regions=["frankfurt"], context_tokens=2048, substitute="small-int8"
        ),
        worlds.document("Model", "small-int8", regions=["dubai"], context_tokens=1024),
        tenant("acme", ACME, models=[MODEL]),
        regions=["frankfurt", "dubai"],
        ladder=[{"quality": q} for q in RUNGS if q != "queued"],
    )
    async with running(ready, config) as edge:
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        whole = await post(edge, ask(temperature=0))
        stream = await post(edge, ask(stream=True))
        direct = await post(edge, ask(model="small-int8"))
        held.let_go()
        assert (await first).json()["model"] == MODEL
        last = asyncio.create_task(post(edge, ask(temperature=0)))
        await edge.until(lambda: held.held == 1)
        held.let_go()
        again = await last
    assert (whole.status_code, whole.headers[QUALITY]) == (200, "quantised")
    assert whole.json()["model"] == "small-int8"
    assert stream.headers[QUALITY] == "quantised"
    assert {e["model"] for e in events(stream.text)[:-1]} == {"small-int8"}
    sent = [(request.model, json.loads(body)["model"]) for _, request, body in ready.sent]
    assert sent.count(("small-int8", "small-int8")) == 2
    assert direct.status_code == 403  # it stands in; it is not the tenant's to ask for
    assert again.json()["model"] == MODEL  # what stood in was not kept


async def test_what_a_stand_in_finds_fault_with_is_not_remembered() -> None:
    held = Held()
    faulty = refusing("dubai", "invalid", 400, retryable=False)
    regions = MemoryUpstream({"frankfurt": held.region("frankfurt"), "dubai": faulty}, RTT_MS)
    config = narrow(
        worlds.document(
            "Model", MODEL, regions=["frankfurt"], context_tokens=2048, substitute="small-int8"
        ),
        worlds.document("Model", "small-int8", regions=["dubai"], context_tokens=8),
        tenant("acme", ACME, models=[MODEL]),
        regions=["frankfurt", "dubai"],
        ladder=[{"quality": q} for q in RUNGS if q != "queued"],
    )
    async with running(regions, config) as edge:
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        at_fault = await post(edge, ask())
        held.let_go()
        await first
        again = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        held.let_go()
        answered = await again
    assert at_fault.status_code == 400
    assert (answered.status_code, answered.json()["model"]) == (200, MODEL)


async def test_an_edge_model_answers_or_declines() -> None:
    held = Held()
    async with running(held.upstream, narrow(waiting_max=0)) as edge:
        edge.app.edge_models.add(MODEL, MemoryModel("tiny", {"Where to?": "Ask again later."}))
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        reply = await post(edge, ask())
        stream = await post(edge, ask(stream=True))
        declined = await post(edge, ask(messages=[{"role": "user", "content": "Why?"}]))
        held.let_go()
        await first
    assert (reply.status_code, reply.headers[QUALITY]) == (200, "edge-model")
    assert reply.headers["x-tradewind-served-by"] == "edge-model"
    assert reply.json()["model"] == "tiny"
    assert reply.json()["choices"][0]["message"]["content"] == "Ask again later."
    assert streamed_text(events(stream.text)) == "Ask again later."
    assert declined.status_code == 503
    assert told(edge) == {"full": 1, "edge-model": 2, "refused": 1}


async def test_what_is_past_its_end_is_better_than_nothing() -> None:
    held = Held()
    config = narrow(
        worlds.document(
            "Model", MODEL, regions=["frankfurt"], context_tokens=2048, cache_ttl_s=0.05
        ),
        waiting_max=0,
    )
    question = ask(temperature=0)
    async with running(held.upstream, config) as edge:
        kept = asyncio.create_task(post(edge, question))
        await edge.until(lambda: held.held == 1)
        held.let_go()
        await kept
        other = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        await asyncio.sleep(0.1)
        reply = await post(edge, question)
        unwanted = await post(edge, question, cache_control="no-cache")
        stranger = await post(edge, question, key=GLOBEX)
        held.let_go()
        await other
    assert reply.status_code == 200
    assert reply.headers["x-tradewind-served-by"] == "cache"
    assert unwanted.status_code == stranger.status_code == 503


async def test_a_refusal_that_no_retry_helps_is_not_retried() -> None:
    regions = upstream(frankfurt=refusing("frankfurt", "overloaded", 503, retryable=False))
    async with running(regions) as edge:
        reply = await post(edge, ask())
    assert reply.status_code == 503
    assert [region for region, _, _ in regions.sent] == ["frankfurt"]


async def test_a_retry_obeys_the_gate() -> None:
    held = Held()
    regions = MemoryUpstream(
        {
            "frankfurt": refusing("frankfurt", "overloaded", 503, retryable=True),
            "dubai": held.region("dubai"),
        },
        RTT_MS,
    )
    config = narrow(tenant("eurobank", EUROBANK), regions=["frankfurt", "dubai"])
    async with running(regions, config) as edge:
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        await edge.until(lambda: edge.app.forwarder.gate.intake("frankfurt").in_flight == 0)
        reply = await post(edge, ask())
        assert reply.status_code == 503
        assert [region for region, _, _ in regions.sent].count("dubai") == 1
        held.let_go()
        assert (await first).headers[QUALITY] == "other-region"


async def test_a_client_cannot_name_its_tier() -> None:
    regions = upstream()
    async with running(regions, narrow()) as edge:
        await post(
            edge, ask(), x_tradewind_tier="vip", x_tradewind_priority="0", priority="u=0",
            x_tradewind_cursor="0", x_tradewind_quality="full",
        )  # fmt: skip
    (_, request, _), *_ = regions.sent
    assert request.priority == 3
    assert 128 <= request.cursor < 256


async def test_users_of_one_tenant_have_places_of_their_own() -> None:
    regions = upstream()
    async with running(regions, narrow()) as edge:
        for user in ("ann", "ann", "bob", "cid"):
            await post(edge, ask(user=user))
    ann, again, *others = [request.cursor for _, request, _ in regions.sent]
    assert ann == again
    assert {ann} != set(others)


DEADLINES = [
    ("1500", 1500), ("999999999", 60_000), ("60001", 60_000), ("1", None),
    ("0", 400), ("-5", 400), ("1e3", 400), ("1.5", 400), ("soon", 400), ("", 400),
    ("9" * 5000, 400), ("0x10", 400),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), DEADLINES)
async def test_deadlines_are_sane_or_refused(given: str, expected: int | None) -> None:
    regions = upstream()
    async with running(regions, narrow()) as edge, httpx.AsyncClient(timeout=20) as client:
        headers = [
            (b"authorization", f"Bearer {ACME}".encode()),
            (b"x-tradewind-deadline-ms", given.encode()),
        ]
        reply = await client.post(edge.chat_url, content=json.dumps(ask()), headers=headers)
    if expected == 400:
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "invalid_header"
        assert not regions.sent
    elif expected is not None:
        (_, request, _), *_ = regions.sent
        # Less what has passed, and the way there.
        assert expected - 1000 < request.deadline_ms <= expected - RTT_MS["frankfurt"] / 2


async def test_without_protection_everything_is_forwarded() -> None:
    held = Held()
    config = narrow(protect=False)
    async with running(held.upstream, config) as edge:
        body = json.dumps(ask(temperature=0))
        headers = {"authorization": f"Bearer {ACME}", "x-tradewind-deadline-ms": "100"}
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                async with httpx.AsyncClient(timeout=0.3) as client:
                    await client.post(edge.chat_url, content=body, headers=headers)
        await edge.until(lambda: held.held == 3)  # all at once, nothing shared, nothing given up
        assert len(edge.app.flights) == 3
        assert all(request.deadline_ms > 3_000_000 for _, request, _ in held.upstream.sent)
        for _ in range(3):
            held.let_go()
        await edge.until(lambda: len(edge.app.flights) == 0)
        assert held.upstream.cancelled == 0
        last = asyncio.create_task(post(edge, ask(temperature=0)))
        await edge.until(lambda: held.held == 1)  # and nothing was kept
        held.let_go()
        assert (await last).headers[QUALITY] == "full"


async def test_who_lost_its_region_waits_for_room_elsewhere() -> None:
    held = Held()
    regions = MemoryUpstream({n: held.region(n) for n in ("frankfurt", "dubai")}, RTT_MS)
    config = narrow(regions=["frankfurt", "dubai"])

    async def dies(request: Request, body: bytes) -> Answer:
        yield Accept(0.0, 0.1, "frankfurt", "memory")
        await asyncio.sleep(0.05)
        regions.cut("frankfurt")
        raise PathDown("frankfurt", "it was cut")

    async with running(regions, config) as edge:
        first = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 1)
        second = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: held.held == 2)
        held.let_go()
        await first
        regions.regions["frankfurt"] = dies
        lost = asyncio.create_task(post(edge, ask()))  # dubai has no room for it
        await edge.until(lambda: len(edge.app.entry.room) == 1)
        held.let_go()
        await second
        await edge.until(lambda: held.held == 1)
        held.let_go()
        reply = await lost
    assert (reply.status_code, reply.headers[QUALITY]) == (200, "queued")
    assert reply.headers["x-tradewind-region"] == "dubai"


async def test_a_vip_that_was_refused_is_tried_once_more() -> None:
    asked: list[Request] = []

    async def once(request: Request, body: bytes) -> Answer:
        asked.append(request)
        if len(asked) == 1:
            failure = Failure("overloaded", "full", 503, True, retry_after_ms=50)
            raise RegionFailure("frankfurt", failure)
        yield Accept(0.0, 0.1, "frankfurt", "memory")
        yield Tokens(0, (1,), TEXT)
        yield End("stop", 7, 1, 0.1)

    config = narrow(tenant("acme", ACME, tier="vip"))
    async with running(MemoryUpstream({"frankfurt": once}, RTT_MS), config) as edge:
        reply = await post(edge, ask())
    assert (reply.status_code, len(asked)) == (200, 2)


async def test_a_standing_gives_what_is_there_first_and_rises_again() -> None:
    config = narrow(
        ladder=[
            *({"quality": q} for q in ("full", "other-region", "queued")),
            {"quality": "edge-model", "enter": 0.8, "leave": 0.4, "leave_s": 0.2},
            {"quality": "refused", "enter": 1.0, "leave": 0.5, "leave_s": 0.2},
        ]
    )
    regions = upstream()
    async with running(regions, config) as edge:
        edge.app.edge_models.add(MODEL, MemoryModel("tiny", {"Where to?": "Later."}))
        ladder, now = edge.app.entry.ladders["standard"], edge.app.forwarder.now
        at = now() - 10
        for _ in range(2):
            ladder.look(5.0, at)
        assert ladder.quality == "refused"
        reply = await post(edge, ask())
        assert (reply.headers[QUALITY], len(regions.sent)) == ("edge-model", 0)
        # Room at once is never refused.
        other = await post(edge, ask(messages=[{"role": "user", "content": "Why?"}]))
        assert (other.status_code, other.headers[QUALITY]) == (200, "full")
        await edge.until(lambda: edge.app.entry.standings()[1].quality == "full")
        assert (await post(edge, ask())).headers[QUALITY] == "full"
        # What the next gives: the reports for heartbeats, in Unix time.
        reports = edge.app.entry.reports(1_000_000.0)
    assert [report.tier for report in reports] == ["vip", "standard", "batch"]
    assert 999_990.0 < reports[1].since_s <= 1_000_000.0

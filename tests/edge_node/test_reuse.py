"""What is given again, and for how long: past its end, from disk, from the region; what is never
given to anybody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_node.admission.quota import Quotas
from edge_node.cache.disk import DiskCache
from edge_node.errors import AttemptsExhausted
from edge_node.figures import Figures
from edge_node.forward.choice import Choice
from edge_node.forward.memory import Answer as Frames
from edge_node.forward.memory import MemoryUpstream, Region
from edge_node.front.auth import Keyring
from edge_node.front.replies import Answer
from edge_node.front.reuse import Reuse, cache_control, spelling_of
from edge_node.serving import Serving
from runtime.clock import ManualClock, SystemClock
from tests.edge_node.worlds import (
    ACME,
    EUROBANK,
    MODEL,
    RTT_MS,
    TEXT,
    Edge,
    answering,
    ask,
    dying,
    post,
    running,
    snapshot,
    tenant,
    upstream,
)
from tests.topology.worlds import document
from topology.overlay.errors import RegionFailure
from topology.overlay.frames import Accept, End, Failure, Request, Tokens
from topology.snapshot import Snapshot
from topology.wire.chat import ChatRequest, Message, Usage


def config(ttl_s: float = 300.0, *more: dict[str, Any], **cache: Any) -> Snapshot:
    model = document("Model", MODEL, regions=list(RTT_MS), context_tokens=100, cache_ttl_s=ttl_s)
    return snapshot(model, document("Policy", "default", cache=cache), *more)


@asynccontextmanager
async def with_disk(
    folder: Path, regions: MemoryUpstream, found: Snapshot
) -> AsyncIterator[tuple[Edge, DiskCache]]:
    async with running(regions, found) as edge:
        disk = DiskCache(folder, 2**24, SystemClock())
        edge.app.serving.disk = disk
        disk.start()
        edge.app.use(found)
        await edge.until(lambda: disk.open, 10.0)
        try:
            yield edge, disk
        finally:
            await disk.close(10.0)


def counting(*texts: str, first_s: float = 0.0, age_s: float | None = None) -> Region:
    """A region that gives one text after another, then the last one on and on."""
    left = list(texts)

    async def answer(request: Request, body: bytes) -> Frames:
        text = left.pop(0) if len(left) > 1 else left[0]
        yield Accept(0.0, 0.1, "frankfurt", "memory")
        await asyncio.sleep(first_s)
        yield Tokens(0, (1,), text)
        yield End("stop", 7, 1, 0.1, cached=age_s is not None, age_s=age_s or 0.0)

    return answer


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


GREEDY = ask(temperature=0)


async def test_past_its_end_an_answer_is_given_and_asked_for_anew_once() -> None:
    regions = upstream(frankfurt=counting("old", "new", first_s=0.2))
    async with running(regions, config(0.3, revalidate_s=30.0)) as edge:
        assert text_of(await post(edge, GREEDY)) == "old"
        await asyncio.sleep(0.35)
        late = await asyncio.gather(*(post(edge, GREEDY) for _ in range(8)))
        assert [text_of(reply) for reply in late] == ["old"] * 8
        for reply in late:
            assert reply.headers["x-tradewind-cache"] == "stale"
            assert reply.headers["x-tradewind-quality"] == "stale"
            assert reply.headers["warning"].startswith("110")
        figures = edge.app.figures.caches
        await edge.until(lambda: figures.revalidated == 1)
        assert (figures.revalidations, figures.stale_memory) == (1, 8)
        assert len(regions.sent) == 2, "one for all of them"
        _, asked, _ = regions.sent[1]
        assert (asked.priority, asked.tenant) == (6, "acme")
        fresh = await post(edge, GREEDY)
        assert (text_of(fresh), fresh.headers["x-tradewind-cache"]) == ("new", "memory")


async def test_what_nobody_gives_anew_is_not_asked_for_all_the_time() -> None:
    calls = []

    async def failing(request: Request, body: bytes) -> Frames:
        calls.append(request)
        if len(calls) > 1:
            raise RegionFailure("frankfurt", Failure("engine", "broken", 500, False))
        yield Tokens(0, (1,), "old")
        yield End("stop", 7, 1, 0.1)

    regions = upstream(frankfurt=failing, dubai=failing, singapore=failing)
    async with running(regions, config(0.2, revalidate_s=30.0)) as edge:
        await post(edge, GREEDY)
        await asyncio.sleep(0.25)
        for _ in range(5):
            assert text_of(await post(edge, GREEDY)) == "old"
            await asyncio.sleep(0.02)
        assert edge.app.figures.caches.revalidations == 1
        assert len(calls) == 2, "by one attempt, and not again soon"


async def test_later_than_that_it_is_forwarded() -> None:
    regions = upstream(frankfurt=counting("old", "new"))
    async with running(regions, config(0.1, revalidate_s=0.1, stale_s=60.0)) as edge:
        await post(edge, GREEDY)
        await asyncio.sleep(0.3)
        reply = await post(edge, GREEDY)
        assert (text_of(reply), reply.headers["x-tradewind-served-by"]) == ("new", "region")


async def test_answers_come_from_disk_after_a_restart(tmp_path: Path) -> None:
    found = config()
    async with with_disk(tmp_path, upstream(), found) as (edge, disk):
        first = await post(edge, GREEDY)
        await edge.until(lambda: disk.written == 1)
    regions = upstream()
    async with with_disk(tmp_path, regions, found) as (edge, disk):
        reply = await post(edge, GREEDY)
        assert (reply.headers["x-tradewind-cache"], reply.content) == ("disk", first.content)
        again = await post(edge, GREEDY)
        assert (again.headers["x-tradewind-cache"], again.content) == ("memory", first.content)
        other = await post(edge, GREEDY, key=EUROBANK)
        assert other.headers["x-tradewind-served-by"] == "region"
        streamed = await post(edge, ask(temperature=0, stream=True))
        assert streamed.headers["x-tradewind-served-by"] == "cache"
        assert len(regions.sent) == 1
        assert b"tradewind_edge_cache_stale_total" in edge.app.metrics.expose()


@pytest.mark.parametrize("change", ["model", "epoch"])
async def test_another_definition_or_epoch_forgets_every_tier(tmp_path: Path, change: str) -> None:
    async with with_disk(tmp_path, upstream(), config()) as (edge, disk):
        await post(edge, GREEDY)
        await edge.until(lambda: disk.written == 1)
        edge.app.use(config(301.0) if change == "model" else config(epoch=1))
        reply = await post(edge, GREEDY)
        assert reply.headers["x-tradewind-served-by"] == "region"
        edge.app.use(config())
        reply = await post(edge, GREEDY)
        assert reply.headers["x-tradewind-served-by"] == "cache"


async def test_without_protection_nothing_is_kept(tmp_path: Path) -> None:
    bare = snapshot(document("Policy", "default", overload={"protect": False}))
    async with with_disk(tmp_path, upstream(), config()) as (edge, disk):
        await post(edge, GREEDY)
        await edge.until(lambda: disk.written == 1)
        edge.app.use(bare)
        for _ in range(2):
            reply = await post(edge, GREEDY)
            assert reply.headers["x-tradewind-served-by"] == "region"
        assert (len(edge.app.serving.cache), edge.app.serving.reuses) == (0, False)


async def test_what_the_region_had_already_is_kept_for_what_is_left_of_it() -> None:
    regions = upstream(frankfurt=counting("kept", "made", age_s=299.6))
    async with running(regions, config(300.0, revalidate_s=0.0)) as edge:
        reply = await post(edge, GREEDY)
        assert reply.headers["x-tradewind-cache"] == "regional"
        assert (await post(edge, GREEDY)).headers["x-tradewind-served-by"] == "cache"
        await asyncio.sleep(0.5)
        assert (await post(edge, GREEDY)).headers["x-tradewind-served-by"] == "region"
        assert edge.app.figures.caches.regional_hits == 2


@pytest.mark.parametrize("directive", ["no-store", "no-cache", "max-age=0", "No-Store, x=y"])
async def test_the_region_is_told_who_wants_nothing_that_is_kept(directive: str) -> None:
    regions = upstream()
    async with running(regions, config()) as edge:
        await post(edge, GREEDY, cache_control=directive)
        await post(edge, GREEDY)
        assert regions.sent[0][1].reuse is False
        assert all(request.reuse for _, request, _ in regions.sent[1:])


# Requests that can only fail


def blaming(**changes: Any) -> Region:
    told = {"code": "invalid", "message": "too long", "status": 400, "retryable": False}

    async def answer(request: Request, body: bytes) -> Frames:
        raise RegionFailure("frankfurt", Failure(**(told | {"param": "messages"} | changes)))
        yield

    return answer


async def test_a_request_that_can_only_fail_is_not_sent_again() -> None:
    regions = upstream(frankfurt=blaming(reason="context_length_exceeded"))
    async with running(regions, config(negative_ttl_s=0.4)) as edge:
        first = await post(edge, ask())
        again = await post(edge, ask())
        assert (first.status_code, again.status_code) == (400, 400)
        assert first.json() == again.json()
        assert again.json()["error"]["code"] == "context_length_exceeded"
        assert len(regions.sent) == 1
        assert (await post(edge, ask(), key=EUROBANK)).status_code == 400
        assert len(regions.sent) == 2, "another tenant's is its own"
        await post(edge, ask(), cache_control="no-cache")
        assert len(regions.sent) == 3
        await asyncio.sleep(0.5)
        await post(edge, ask())
        assert len(regions.sent) == 4
        assert edge.app.figures.caches.failures_told == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 429, "code": "overloaded", "retryable": True},
        {"status": 404, "code": "unknown_model"},
        {"status": 503, "code": "overloaded"},
        {"status": 504, "code": "deadline"},
        {"param": "resume_tokens"},
        {"retryable": True},
    ],
)
async def test_what_may_go_well_another_time_is_not_remembered(changes: dict[str, Any]) -> None:
    region = blaming(**changes)
    regions = upstream(frankfurt=region, dubai=region, singapore=region)
    async with running(regions, config(negative_ttl_s=60.0)) as edge:
        await post(edge, ask())
        sent = len(regions.sent)
        await post(edge, ask())
        assert len(regions.sent) > sent
        assert edge.app.figures.caches.failures_noted == 0


async def test_failures_are_forgotten_with_a_change_and_bounded() -> None:
    regions = upstream(frankfurt=blaming())
    async with running(regions, config(negative_ttl_s=60.0)) as edge:
        await post(edge, ask())
        edge.app.use(config(negative_ttl_s=60.0))
        await post(edge, ask())
        assert len(regions.sent) == 2
        failures = edge.app.serving.failures
        error = AttemptsExhausted(
            RegionFailure("x", Failure("invalid", "m" * 4000, 400, False)), (), False
        )
        reuse = edge.app._chat._reuse
        for number in range(5000):
            reuse.note_failure(("acme", number.to_bytes(16, "big")), error, 0.0)
        assert failures.used_bytes <= failures.max_bytes
        assert len(failures) < 2000


# What must not be kept


async def test_an_answer_of_several_regions_parts_is_not_kept() -> None:
    regions = upstream(frankfurt=dying("frankfurt", 3))
    async with running(regions, config()) as edge:
        reply = await post(edge, GREEDY)
        assert text_of(reply) == TEXT
        assert len(regions.sent) > 1
        assert len(edge.app.serving.cache) == 0
        again = await post(edge, GREEDY)
        assert again.headers["x-tradewind-served-by"] == "region"


async def test_an_answer_that_its_client_did_not_wait_for_is_not_kept_cut() -> None:
    regions = upstream(frankfurt=answering("frankfurt", pause_s=0.1))
    async with running(regions, config(coalesce=False)) as edge:
        with pytest.raises(httpx.ReadTimeout):
            async with httpx.AsyncClient(timeout=0.3) as client:
                headers = {"authorization": f"Bearer {ACME}"}
                await client.post(edge.chat_url, json=GREEDY, headers=headers)
        await edge.until(lambda: len(edge.app.flights) == 0)
        assert len(edge.app.serving.cache) == 0


POISON = {
    "x-forwarded-host": "evil", "x-forwarded-for": "10.0.0.1", "host": "evil.example",
    "x-original-url": "/v1/models", "x-http-method-override": "GET", "accept": "text/html",
    "accept-encoding": "br", "accept-language": "xx", "cookie": "tenant=eurobank",
    "x-tradewind-tenant": "eurobank", "x-tradewind-cache": "memory", "user-agent": "evil",
    "origin": "https://evil.example", "priority": "u=0", "range": "bytes=0-1",
    "x-request-id": "evil", "if-none-match": "*", "pragma": "x", "age": "1000000",
    "content-type": "text/plain", "x-tradewind-served-by": "evil", "vary": "*",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(POISON))
async def test_no_header_of_one_client_reaches_what_others_get(name: str) -> None:
    regions = upstream()
    async with running(regions, config()) as edge:
        async with httpx.AsyncClient() as client:
            headers = {"authorization": f"Bearer {ACME}", name: POISON[name]}
            content = json.dumps(GREEDY).encode()
            first = await client.post(edge.chat_url, content=content, headers=headers)
        assert first.status_code == 200, first.text
        clean = await post(edge, GREEDY)
        assert clean.headers["x-tradewind-served-by"] == "cache", "and it was kept all the same"
        assert clean.content == first.content
        assert "evil" not in str(dict(clean.headers))
        own = await post(edge, GREEDY, key=EUROBANK)
        assert own.headers["x-tradewind-served-by"] == "region"


async def test_what_is_of_no_consequence_for_the_answer_is_no_part_of_its_key() -> None:
    regions = upstream()
    async with running(regions, config()) as edge:
        await post(edge, GREEDY)
        for extra in ({"user": "u"}, {"metadata": {"a": "b"}}, {"store": True}, {"n": 1}):
            reply = await post(edge, GREEDY | extra)
            assert reply.headers["x-tradewind-served-by"] == "cache"
        for extra in ({"max_tokens": 5}, {"stop": "x"}, {"seed": 1}, {"top_p": 0.5}):
            reply = await post(edge, GREEDY | extra)
            assert reply.headers["x-tradewind-served-by"] == "region"


# By the code alone: what is past its end, and tenants


class _Shelved:
    """A disk tier in memory that trusts what it holds: the conformance is the disk's own."""

    def __init__(self) -> None:
        self.held: dict[object, Answer] = {}

    def find(self, key: object, late_s: float) -> tuple[Answer, float] | None:
        found = self.held.get(key)
        return None if found is None else (found, 10.0)

    def keep(self, key: object, answer: Answer, ttl_s: float) -> None:
        self.held[key] = answer

    def limit(self, max_bytes: int, share: float) -> None: ...


def reuse_of(found: Snapshot) -> tuple[Reuse, Serving]:
    rng = Random(1)
    choice = Choice("london", dict, ManualClock(), rng)  # type: ignore[arg-type,return-value]
    serving = Serving("london", Keyring(), choice, Quotas(rng))
    serving.use(found)
    return Reuse(serving, Figures()), serving


def asked(text: str, **more: Any) -> ChatRequest:
    wanted = {"model": MODEL, "messages": (Message("user", text),), "temperature": 0.0}
    return ChatRequest(**(wanted | more))


@pytest.mark.parametrize(
    ("late_s", "fresh", "revalidated", "stale"),
    [
        (-1.0, True, True, True),
        (5.0, False, True, True),
        (25.0, False, False, True),
        (125.0, False, False, False),
    ],
)
def test_how_late_an_answer_may_be(
    late_s: float, fresh: bool, revalidated: bool, stale: bool
) -> None:
    reuse, _ = reuse_of(config(300.0, revalidate_s=20.0, stale_s=100.0))
    request, now = asked("x"), 1000.0
    key = reuse.key("acme", request)
    assert key is not None
    answer = Answer("id", 1, MODEL, "text", "stop", Usage.of(1, 1))
    sent = []
    reuse.ask_anew = lambda key, request, body: sent.append(key) is None
    reuse.keep(key, MODEL, answer, now)
    at = now + 300.0 + late_s
    found = reuse.find(key, ("acme", b"s"), request, b"{}", at)
    assert (found is not None) == revalidated
    assert bool(sent) == (revalidated and not fresh)
    repeat = reuse.repeat(("acme", b"s"), at)
    assert (repeat is not None) == fresh
    last = reuse.stale(key, request, at)
    assert (last is not None) == stale
    if last is not None:
        assert (dict(last[0])["x-tradewind-cache"] == "stale") == (not fresh)


def test_what_was_asked_of_another_definition_is_not_kept() -> None:
    reuse, serving = reuse_of(config(300.0))
    request = asked("x")
    key = reuse.key("acme", request)
    assert key is not None
    answer = Answer("id", 1, MODEL, "text", "stop", Usage.of(1, 1))
    serving.use(config(300.0, epoch=1))  # while it waited for room
    reuse.keep(key, MODEL, answer, 1.0)
    serving.use(config(300.0))  # and back again
    assert reuse.find(key, ("acme", b"s"), request, b"{}", 2.0) is None
    reuse.keep(key, MODEL, answer, 3.0)
    assert reuse.find(key, ("acme", b"s"), request, b"{}", 4.0) is not None


TENANTS = st.sampled_from(["acme", "eurobank"])
REQUESTS = st.builds(
    asked,
    st.sampled_from(["", "a", "b", "ab"]),
    seed=st.sampled_from([None, 0, 1]),
    stream=st.booleans(),
    user=st.sampled_from(["", "acme", "eurobank"]),
    stop=st.sampled_from([(), ("a",), ("a", "b")]),
)


@given(st.lists(st.tuples(TENANTS, REQUESTS, st.sampled_from(["find", "stale"])), max_size=60))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("disk", [False, True])
def test_neither_tenant_ever_sees_what_was_made_for_the_other(
    disk: bool, steps: list[tuple[str, ChatRequest, str]]
) -> None:
    reuse, serving = reuse_of(config())
    if disk:
        serving.disk = _Shelved()
    for number, (who, request, how) in enumerate(steps):
        key = reuse.key(who, request)
        assert key is not None
        body = repr(request).encode()
        spelling = spelling_of(who, body)
        ready = reuse.repeat(spelling, 0.0)
        if ready is None:
            if how == "find":
                ready = reuse.find(key, spelling, request, body, 0.0)
            else:
                ready = reuse.stale(key, request, 0.0)
        if ready is not None:
            mark = f"<{who}|{request.messages[0].content}|{request.seed}|{request.stop}>"
            assert json.dumps(mark)[1:-1].encode() in ready[1]
            continue
        text = f"<{who}|{request.messages[0].content}|{request.seed}|{request.stop}>"
        reuse.keep(key, MODEL, Answer(str(number), 1, MODEL, text, "stop", Usage.of(1, 1)), 0.0)
        if disk and number % 3 == 0:
            serving.cache.resize(0)
            serving.cache.resize(2**20)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (True, True)),
        ("no-store", (False, False)),
        ("no-cache", (False, True)),
        ("max-age=0", (False, True)),
        (" NO-CACHE ,x", (False, True)),
        ("max-age=60, public", (True, True)),
        ("," * 1000, (True, True)),
        ("no-storeX", (True, True)),
    ],
)
def test_cache_control(header: str | None, expected: tuple[bool, bool]) -> None:
    assert cache_control(header) == expected


async def test_a_tenant_that_fills_the_cache_pushes_out_only_its_own() -> None:
    found = snapshot(
        tenant("third", "sk-third-0123456789"),
        document("Policy", "default", cache_max_bytes=2**20, cache={"tenant_share": 0.25}),
    )
    reuse, serving = reuse_of(found)
    answer = Answer("id", 1, MODEL, "x" * 1000, "stop", Usage.of(1, 1))

    def keep(who: str, text: str) -> Any:
        key = reuse.key(who, asked(text))
        assert key is not None
        reuse.keep(key, MODEL, answer, 0.0)
        return key

    quiet = [keep("eurobank", str(n)) for n in range(50)]
    for n in range(3000):
        keep("acme", str(n))
    assert serving.cache.evicted > 2000
    assert all(serving.cache.get(key, 0.0) for key in quiet)

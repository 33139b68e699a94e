"""The edge's HTTP API, over real sockets, with regions in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from edge_node.forward.memory import Answer
from tests.edge_node.worlds import (
    ACME,
    EUROBANK,
    MODEL,
    RTT_MS,
    TEXT,
    WORDS,
    Edge,
    answering,
    ask,
    dying,
    events,
    post,
    refusing,
    running,
    silent,
    snapshot,
    streamed_text,
    tenant,
    upstream,
)
from tests.topology.worlds import document
from topology.overlay.frames import Request, Tokens


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running(upstream()) as edge:
        yield edge


async def get(edge: Edge, path: str, key: str | None = ACME, method: str = "GET") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient() as client:
        return await client.request(method, edge.url + path, headers=headers)


def error(reply: httpx.Response) -> dict[str, Any]:
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


# Answers


async def test_a_whole_answer(edge: Edge) -> None:
    reply = await post(edge, ask())
    assert reply.status_code == 200
    body = reply.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    assert body["usage"] == usage
    assert reply.headers["content-type"] == "application/json"
    names = ("served-by", "edge", "region", "path")
    assert [reply.headers[f"x-tradewind-{n}"] for n in names] == [
        "region",
        "london",
        "frankfurt",
        "direct",
    ]
    assert reply.headers["x-tradewind-request-id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("usage", [False, True])
async def test_a_streamed_answer(edge: Edge, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    reply = await post(edge, ask(stream=True, **options))
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = events(reply.text)
    assert found[-1] == "[DONE]"
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert streamed_text(found) == TEXT
    assert len({event["id"] for event in found[:-1]}) == 1
    finishes = [e["choices"][0]["finish_reason"] for e in found[:-1] if e["choices"]]
    assert finishes == [None] * (len(WORDS) + 1) + ["stop"]
    if usage:
        assert found[-2]["usage"]["total_tokens"] == 16
        assert found[-2]["choices"] == []


async def test_tokens_are_passed_on_as_they_come() -> None:
    async with running(upstream(frankfurt=answering("frankfurt", pause_s=0.1))) as edge:
        loop = asyncio.get_running_loop()
        arrivals = []
        headers = {"authorization": f"Bearer {ACME}"}
        async with (
            httpx.AsyncClient() as client,
            client.stream("POST", edge.chat_url, json=ask(stream=True), headers=headers) as reply,
        ):
            async for line in reply.aiter_lines():
                if line:
                    arrivals.append(loop.time())
        assert arrivals[-1] - arrivals[0] > 0.4  # of the 0.8 s that they take


async def test_what_the_region_is_told(edge: Edge) -> None:
    sent = json.dumps(ask(stream=True)).encode()
    await post(edge, sent, x_request_id="trace-7", x_tradewind_deadline_ms="5000")
    _, request, body = edge.regions.sent[0]
    assert body == sent
    assert (request.tenant, request.model, request.stream) == ("acme", MODEL, True)
    assert request.priority == 1  # a VIP
    assert 4_800 < request.deadline_ms <= 5_000
    assert request.request_id.startswith("trace-7~")


async def test_http2_is_spoken_where_it_is_asked_for() -> None:
    async with running(upstream(), http2=True) as edge:
        command = (
            "curl", "-s", "--http2-prior-knowledge", "-w", "%{http_version}", "-d",
            json.dumps(ask()), "-H", f"authorization: Bearer {ACME}", edge.chat_url,
        )  # fmt: skip
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    assert out.endswith(b"}2")
    assert TEXT.encode() in out


# Names


async def test_a_sane_request_id_is_kept_and_any_other_replaced(edge: Edge) -> None:
    reply = await post(edge, ask(), x_request_id="my-id:1")
    assert reply.headers["x-request-id"] == "my-id:1"
    for bad in ("a" * 129, "a b", "<x>", ""):
        reply = await post(edge, ask(), x_request_id=bad)
        assert reply.headers["x-request-id"] not in (bad, "my-id:1")
    ids = {request.request_id for _, request, _ in edge.regions.sent}
    assert len(ids) == 5


# The cache


async def test_a_deterministic_request_is_answered_once(edge: Edge) -> None:
    first = await post(edge, ask(temperature=0))
    again = await post(edge, ask(temperature=0))
    exact = await post(edge, ask(temperature=0))
    served = [r.headers["x-tradewind-served-by"] for r in (first, again, exact)]
    assert served == ["region", "cache", "cache"]
    assert first.content == again.content == exact.content
    assert len(edge.regions.sent) == 1
    figures = edge.app.figures
    assert (figures.cache_misses, figures.cache_hits, figures.cache_repeats) == (1, 1, 1)


async def test_another_spelling_and_another_form_come_from_the_same_answer(edge: Edge) -> None:
    body = ask(temperature=0, seed=4)
    first = await post(edge, body)
    spaced = await post(edge, json.dumps(body, indent=2).encode())
    reordered = await post(edge, dict(reversed(body.items())))
    assert spaced.content == reordered.content == first.content
    for _ in range(2):
        reply = await post(edge, body | {"stream": True})
        assert reply.headers["x-tradewind-served-by"] == "cache"
        assert reply.headers["content-type"].startswith("text/event-stream")
        found = events(reply.text)
        assert found[-1] == "[DONE]" and streamed_text(found) == TEXT
    assert len(edge.regions.sent) == 1


async def test_a_streamed_answer_is_kept_too(edge: Edge) -> None:
    await post(edge, ask(seed=1, stream=True))
    reply = await post(edge, ask(seed=1))
    assert reply.headers["x-tradewind-served-by"] == "cache"
    assert reply.json()["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0, "seed": 2},
        {"temperature": 0, "max_tokens": 5},
        {"temperature": 0, "top_p": 0.5},
        {"temperature": 0, "stop": ["x"]},
        {"temperature": 0, "messages": [{"role": "system", "content": "Where to?"}]},
    ],
)
async def test_another_question_has_another_answer(edge: Edge, change: dict[str, Any]) -> None:
    await post(edge, ask(temperature=0))
    reply = await post(edge, ask() | change)
    assert reply.headers["x-tradewind-served-by"] == "region"


async def test_what_may_differ_each_time_is_not_cached(edge: Edge) -> None:
    for _ in range(2):
        reply = await post(edge, ask())
        assert reply.headers["x-tradewind-served-by"] == "region"


async def test_tenants_do_not_share_answers(edge: Edge) -> None:
    await post(edge, ask(temperature=0))
    for _ in range(2):
        await post(edge, ask(temperature=0))
    reply = await post(edge, ask(temperature=0), key=EUROBANK)
    assert reply.headers["x-tradewind-served-by"] == "region"
    assert [request.tenant for _, request, _ in edge.regions.sent] == ["acme", "eurobank"]


async def test_cache_control_of_the_request_is_honoured(edge: Edge) -> None:
    async def served(**headers: str) -> str:
        reply = await post(edge, ask(temperature=0), **headers)
        found: str = reply.headers["x-tradewind-served-by"]
        return found

    assert await served(cache_control="no-store") == "region"
    assert await served() == "region"  # the first one was not kept
    assert await served(cache_control="no-cache") == "region"
    assert await served(cache_control="Max-Age=0, foo") == "region"
    assert await served(cache_control="no-store") == "region"
    assert await served() == "cache"
    assert await served() == "cache"


async def test_another_definition_of_the_model_has_other_answers(edge: Edge) -> None:
    for _ in range(3):
        await post(edge, ask(temperature=0))
    regions = list(RTT_MS)
    changed = document("Model", MODEL, regions=regions, context_tokens=1024)
    edge.app.use(snapshot(changed))
    assert (await post(edge, ask(temperature=0))).headers["x-tradewind-served-by"] == "region"
    edge.app.use(snapshot())
    assert (await post(edge, ask(temperature=0))).headers["x-tradewind-served-by"] == "cache"


async def test_rights_are_checked_again_after_a_change(edge: Edge) -> None:
    for _ in range(3):
        await post(edge, ask(temperature=0))
    other = document("Model", "other", regions=list(RTT_MS), context_tokens=10)
    edge.app.use(snapshot(other, tenant("acme", ACME, models=["other"])))
    reply = await post(edge, ask(temperature=0))
    assert (reply.status_code, error(reply)["code"]) == (403, "model_not_allowed")
    edge.app.use(snapshot(tenant("acme", "sk-another-0123")))
    assert (await post(edge, ask(temperature=0))).status_code == 401


async def test_answers_expire(edge: Edge) -> None:
    model = document("Model", MODEL, regions=list(RTT_MS), context_tokens=10, cache_ttl_s=0.3)
    policy = document("Policy", "default", cache={"revalidate_s": 0})
    edge.app.use(snapshot(model, policy))
    for _ in range(3):
        await post(edge, ask(temperature=0))
    await asyncio.sleep(0.4)
    assert (await post(edge, ask(temperature=0))).headers["x-tradewind-served-by"] == "region"


async def test_a_model_may_turn_the_cache_off(edge: Edge) -> None:
    model = document("Model", MODEL, regions=list(RTT_MS), context_tokens=10, cache_ttl_s=0)
    edge.app.use(snapshot(model))
    for _ in range(2):
        reply = await post(edge, ask(temperature=0))
        assert reply.headers["x-tradewind-served-by"] == "region"


async def test_the_cache_answers_when_no_region_can(edge: Edge) -> None:
    await post(edge, ask(temperature=0))
    for name in RTT_MS:
        edge.regions.cut(name)
    assert (await post(edge, ask(temperature=0))).headers["x-tradewind-served-by"] == "cache"
    assert (await post(edge, ask())).status_code == 503


async def test_broken_answers_are_not_kept() -> None:
    regions = upstream()
    regions.regions |= {name: dying(name, 2, cut=regions) for name in RTT_MS}
    async with running(regions) as edge:
        await post(edge, ask(temperature=0, stream=True))
        await post(edge, ask(temperature=0))
        assert len(edge.app.serving.cache) == 0


# Regions that fail


@pytest.mark.parametrize("stream", [False, True])
async def test_a_region_that_dies_midway_is_not_noticed(stream: bool) -> None:
    async with running(upstream(frankfurt=dying("frankfurt", 4))) as edge:
        reply = await post(edge, ask(stream=stream))
        if stream:
            found = events(reply.text)
            assert found[-1] == "[DONE]"
            assert streamed_text(found) == TEXT
            assert reply.headers["x-tradewind-region"] == "frankfurt"  # where it began
        else:
            assert reply.json()["choices"][0]["message"]["content"] == TEXT
            assert reply.headers["x-tradewind-region"] == "dubai"


async def test_regions_that_talk_nonsense_are_told_from_ways_that_are_cut() -> None:
    async def nonsense(request: Request, body: bytes) -> Answer:
        yield Tokens(7, (1,), "x")

    async with running(upstream(**dict.fromkeys(RTT_MS, nonsense))) as edge:
        edge.app.forwarder.budget.min_per_s = 1e-9  # one retry, and never another
        for stream in (False, True):
            reply = await post(edge, ask(stream=stream))
            assert (reply.status_code, error(reply)["code"]) == (502, "region_faulty")
        metrics = edge.app.metrics.expose().decode()
    assert "tradewind_edge_retry_budget_spent_total 1.0" in metrics
    assert "tradewind_edge_retry_budget_refused_total 2.0" in metrics
    assert "tradewind_edge_retried_total 1.0" in metrics


async def test_a_stream_that_nobody_can_continue_ends_with_an_error() -> None:
    regions = upstream()
    regions.regions["frankfurt"] = dying("frankfurt", 4, cut=regions)
    async with running(regions) as edge:
        reply = await post(edge, ask(stream=True), key=EUROBANK)
        found = events(reply.text)
        assert reply.status_code == 200
        assert streamed_text(found) == "".join(WORDS[:4])
        assert found[-1]["error"]["code"] == "region_unreachable"
        assert edge.app.figures.streams_broken == 1


@pytest.mark.parametrize(
    ("code", "status", "retryable", "told"),
    [
        ("overloaded", 503, True, "overloaded"),
        ("overloaded", 429, True, "overloaded"),
        ("invalid", 400, False, "invalid_request"),
        ("deadline", 504, False, "deadline_exceeded"),
        ("engine", 500, True, "engine"),
        ("draining", 503, True, "draining"),
        ("unknown_model", 404, False, "model_not_found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_regions_refusal_reaches_the_client(
    code: str, status: int, retryable: bool, told: str, stream: bool
) -> None:
    regions = {name: refusing(name, code, status, retryable=retryable) for name in RTT_MS}
    async with running(upstream(**regions)) as edge:
        reply = await post(edge, ask(stream=stream))
        assert reply.status_code == status
        assert error(reply)["code"] == told
        assert ("retry-after" in reply.headers) == (status in (429, 503))
        assert len(edge.regions.sent) == (3 if retryable else 1)


async def test_a_fault_of_ours_is_told_without_its_details() -> None:
    async def broken(request: Any, body: bytes) -> Any:
        raise ZeroDivisionError("a secret")
        yield

    async with running(upstream(frankfurt=broken)) as edge:
        reply = await post(edge, ask())
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert error(reply)["code"] == "internal_error"
        assert len(edge.app.flights) == 0


# Refusals


async def test_keys(edge: Edge) -> None:
    async with httpx.AsyncClient() as client:
        reply = await client.post(edge.chat_url, json=ask())
        assert (reply.status_code, error(reply)["code"]) == (401, "invalid_api_key")
    reply = await post(edge, ask(), key="sk-wrong")
    assert (reply.status_code, error(reply)["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert (await get(edge, "/v1/models", key=None)).status_code == 401


async def test_an_unknown_model(edge: Edge) -> None:
    reply = await post(edge, ask() | {"model": "gpt-x"})
    assert reply.status_code == 404
    assert (error(reply)["code"], error(reply)["param"]) == ("model_not_found", "model")


async def test_residency_that_nothing_satisfies(edge: Edge) -> None:
    edge.app.use(snapshot(tenant("eurobank", EUROBANK, residency=["CH"])))
    reply = await post(edge, ask(), key=EUROBANK)
    assert reply.status_code == 403
    assert error(reply)["code"] == "residency_not_satisfiable"
    assert "CH" in error(reply)["message"]
    assert edge.regions.sent == []


async def test_no_region_left(edge: Edge) -> None:
    drains = [
        document("Override", f"d-{name}", region=name, action="drain", reason="upgrade")
        for name in RTT_MS
    ]
    edge.app.use(snapshot(*drains))
    reply = await post(edge, ask())
    assert reply.status_code == 503
    assert error(reply)["code"] == "no_region_available"
    assert "upgrade" in error(reply)["message"]
    assert reply.headers["retry-after"] == "1"


async def test_the_deadline() -> None:
    async with running(upstream(frankfurt=silent("frankfurt"))) as edge:
        loop = asyncio.get_running_loop()
        for header in ("x_tradewind_deadline_ms", "x_request_timeout_ms"):
            begin = loop.time()
            reply = await post(edge, ask(), **{header: "300"})
            assert (reply.status_code, error(reply)["code"]) == (504, "deadline_exceeded")
            assert 0.3 <= loop.time() - begin < 4.0  # the limit for silence is longer
        await edge.until(lambda: edge.regions.cancelled == 2)
        edge.app.use(snapshot(tenant("acme", ACME, deadline_ms=200)))
        begin = loop.time()
        reply = await post(edge, ask(), x_tradewind_deadline_ms="60000")
        assert reply.status_code == 504  # a client cannot have more than its tenant
        assert loop.time() - begin < 10.0


async def test_the_deadline_ends_a_stream_with_an_error() -> None:
    async with running(upstream(frankfurt=answering("frankfurt", pause_s=0.1))) as edge:
        reply = await post(edge, ask(stream=True), x_tradewind_deadline_ms="450")
        found = events(reply.text)
        assert found[-1]["error"]["code"] == "deadline_exceeded"
        assert TEXT.startswith(streamed_text(found)) and len(found) > 2


@pytest.mark.parametrize("bad", ["0", "-1", "1.5", "soon", "", "9" * 30])
async def test_a_deadline_that_is_none(edge: Edge, bad: str) -> None:
    reply = await post(edge, ask(), x_tradewind_deadline_ms=bad)
    assert (reply.status_code, error(reply)["code"]) == (400, "invalid_header")
    assert error(reply)["param"] == "x-tradewind-deadline-ms"


async def test_the_first_token_timeout_moves_on() -> None:
    policy = document("Policy", "default", first_token_timeout_ms=150)
    async with running(upstream(frankfurt=silent("frankfurt")), snapshot(policy)) as edge:
        reply = await post(edge, ask())
        assert reply.headers["x-tradewind-region"] == "dubai"
        reply = await post(edge, ask(), key=EUROBANK)
        assert (reply.status_code, error(reply)["code"]) == (504, "region_timeout")


async def test_paths_and_methods(edge: Edge) -> None:
    for path in ("/", "/v1/completions", "/v1/chat/completions/", "/v1", "/metrics/x"):
        reply = await get(edge, path)
        assert (reply.status_code, error(reply)["code"]) == (404, "unknown_url")
    for method, path, allow in (
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/healthz", "GET, HEAD"),
    ):
        reply = await get(edge, path, method=method)
        assert (reply.status_code, error(reply)["code"]) == (405, "method_not_allowed")
        assert reply.headers["allow"] == allow


# Other pages


async def test_models(edge: Edge) -> None:
    other = document("Model", "other", regions=["dubai"], context_tokens=10, owned_by="x")
    edge.app.use(snapshot(other, tenant("acme", ACME, models=["other"])))
    body = (await get(edge, "/v1/models")).json()
    entry = {"id": "other", "object": "model", "created": 0, "owned_by": "x"}
    assert body == {"object": "list", "data": [entry]}
    assert (await get(edge, "/v1/models/other")).json() == entry
    assert (await get(edge, "/v1/models/small")).status_code == 404
    ids = [m["id"] for m in (await get(edge, "/v1/models", key=EUROBANK)).json()["data"]]
    assert ids == ["other", "small"]


async def test_health(edge: Edge) -> None:
    assert (await get(edge, "/healthz", key=None)).status_code == 200
    assert (await get(edge, "/healthz", key=None, method="HEAD")).content == b""
    reply = await get(edge, "/readyz", key=None)
    assert reply.status_code == 200
    assert reply.json()["regions"] == dict.fromkeys(RTT_MS, True)
    for name in RTT_MS:
        edge.regions.cut(name)
    reply = await get(edge, "/readyz", key=None)
    assert (reply.status_code, reply.json()["reasons"]) == (503, ["no region is connected"])
    assert (await get(edge, "/healthz", key=None)).status_code == 200


async def test_an_edge_without_configuration_says_so() -> None:
    async with running(upstream()) as edge:
        edge.app.serving.ready = False
        reply = await post(edge, ask())
        assert (reply.status_code, error(reply)["code"]) == (503, "not_ready")
        reply = await get(edge, "/readyz", key=None)
        assert reply.status_code == 503
        assert "no configuration" in reply.json()["reasons"][0]


async def test_metrics(edge: Edge) -> None:
    for _ in range(3):
        await post(edge, ask(temperature=0))
    await post(edge, ask() | {"model": "nothing"})
    text = (await get(edge, "/metrics", key=None)).text
    for line in (
        "tradewind_edge_requests_total 4.0",
        "tradewind_edge_forwarded_total 1.0",
        'tradewind_edge_cache_hits_total{by="bytes"} 1.0',
        'tradewind_edge_errors_total{status="404"} 1.0',
        "tradewind_edge_cache_entries 1.0",
        "tradewind_edge_first_token_seconds_count 1.0",
        "tradewind_edge_in_flight 0.0",
    ):
        assert line in text.splitlines()


# Shutdown


async def test_draining_finishes_what_is_under_way() -> None:
    async with running(upstream(frankfurt=answering("frankfurt", pause_s=0.05))) as edge:
        under_way = asyncio.create_task(post(edge, ask(stream=True)))
        await edge.until(lambda: len(edge.app.flights) == 1)
        draining = asyncio.create_task(edge.app.drain(5.0))
        await asyncio.sleep(0)
        assert (await get(edge, "/readyz", key=None)).status_code == 503
        await draining
        assert streamed_text(events((await under_way).text)) == TEXT


async def test_draining_stops_what_takes_too_long() -> None:
    slow = answering("frankfurt", pause_s=0.1)
    async with running(upstream(frankfurt=slow)) as edge:
        begun = asyncio.create_task(post(edge, ask(stream=True)))
        waiting = asyncio.create_task(post(edge, ask()))
        await edge.until(lambda: len(edge.regions.sent) == 2)
        await asyncio.sleep(0.2)
        await edge.app.drain(0.1)
        assert events((await begun).text)[-1]["error"]["code"] == "shutting_down"
        reply = await waiting
        assert (reply.status_code, error(reply)["code"]) == (503, "shutting_down")

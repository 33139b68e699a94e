"""The OpenAI API of one core, through real clients."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.region_core.cores import MODEL, RunningCore

SLOW: dict[str, Any] = {"step_ms": 20.0, "answer_tokens_min": 500, "answer_tokens_max": 500}


def asked(**changes: Any) -> dict[str, Any]:
    turn = {"role": "user", "content": "Tell me of the sea."}
    return {"model": MODEL, "temperature": 0, "messages": [turn]} | changes


def client(running: RunningCore) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, timeout=20)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_openai_client(tmp_path: Path) -> None:
    async with (
        RunningCore(tmp_path / "pki") as running,
        openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="x") as api,
    ):
        whole: Any = await api.chat.completions.create(**asked(max_tokens=9))
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage.completion_tokens == 9
        text, usage = "", None
        stream: Any = await api.chat.completions.create(
            **asked(max_tokens=9, stream=True, stream_options={"include_usage": True})
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text == whole.choices[0].message.content and usage == whole.usage
        models = [model async for model in api.models.list()]
        assert [model.id for model in models] == [MODEL]
        assert models[0].engine == "sim"  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError) as missing:
            await api.chat.completions.create(**asked(model="other"))
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as long:
            await api.chat.completions.create(
                **asked(messages=[{"role": "user", "content": "x" * 100_000}])
            )
        assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"content": b"{"}, 400, None),
        ({"content": b"\xff"}, 400, None),
        ({"content": b"x" * (3 * 2**20)}, 413, "request_too_large"),
        ({"json": asked(top_p=0)}, 400, "invalid_value"),
        ({"json": asked(max_tokens=10**6)}, 400, "invalid_value"),
        ({"json": asked(), "headers": {"x-request-timeout-ms": "soon"}}, 400, "invalid_header"),
    ],
)
async def test_errors_have_openais_form(
    tmp_path: Path, sent: dict[str, Any], status: int, code: str | None
) -> None:
    async with RunningCore(tmp_path / "pki") as running, client(running) as http:
        reply = await http.post("/v1/chat/completions", **sent)
        assert reply.status_code == status
        error = reply.json()["error"]
        assert error["code"] == code and error["message"]
        assert set(error) == {"message", "type", "param", "code"}


async def test_pages(tmp_path: Path) -> None:
    async with RunningCore(tmp_path / "pki") as running, client(running) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok", "region": "frankfurt"}
        ready = (await http.get("/readyz")).json()
        assert ready["status"] == "ready" and ready["engine"] == "sim" and ready["slots"] == 16
        await http.post("/v1/chat/completions", json=asked(max_tokens=3))
        metrics = (await http.get("/metrics")).text
        assert 'tradewind_core_engine{device="none",dtype="none",engine="sim"} 1.0' in metrics
        assert "tradewind_core_completion_tokens_total 3.0" in metrics
        assert 'tradewind_core_finished_total{reason="length"} 1.0' in metrics
        assert (await http.get("/nothing")).status_code == 404
        assert (await http.post("/healthz")).status_code == 405
        assert (await http.get("/v1/chat/completions")).status_code == 405


async def test_the_load_travels_in_a_header_when_asked_for(tmp_path: Path) -> None:
    async with RunningCore(tmp_path / "pki") as running, client(running) as http:
        headers = {"endpoint-load-metrics-format": "TEXT"}
        reply = await http.post("/v1/chat/completions", json=asked(max_tokens=1), headers=headers)
        assert reply.headers["endpoint-load-metrics"].startswith("TEXT application_utilization=")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_cancelled(tmp_path: Path, stream: bool) -> None:
    async with RunningCore(tmp_path / "pki", sim=SLOW) as running:
        service = running.core.service
        async with client(running) as http:
            sent = asyncio.create_task(
                http.post("/v1/chat/completions", json=asked(stream=stream, max_tokens=500))
            )
            await until(lambda: service.report().running == 1)
            sent.cancel()
            await asyncio.gather(sent, return_exceptions=True)
        await until(lambda: service.report().running == 0)
        assert service.counters.cancelled == 1


async def test_a_deadline(tmp_path: Path) -> None:
    async with RunningCore(tmp_path / "pki", sim=SLOW) as running, client(running) as http:
        headers = {"x-request-timeout-ms": "150"}
        whole = await http.post("/v1/chat/completions", json=asked(), headers=headers)
        assert whole.status_code == 504 and whole.json()["error"]["code"] == "deadline"
        stream = await http.post("/v1/chat/completions", json=asked(stream=True), headers=headers)
        assert stream.status_code == 200  # it had begun
        last = stream.text.strip().splitlines()[-1]
        assert '"code":"deadline"' in last


async def test_a_full_core_says_so(tmp_path: Path) -> None:
    scheduling = {"slots": 1, "waiting": 0}
    async with (
        RunningCore(tmp_path / "pki", sim=SLOW, scheduling=scheduling) as running,
        client(running) as http,
    ):
        first = asyncio.create_task(http.post("/v1/chat/completions", json=asked()))
        await until(lambda: running.core.service.report().running == 1)
        reply = await http.post("/v1/chat/completions", json=asked())
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize("said", [b"", b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
async def test_a_connection_that_says_no_more_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("region_core.ingress.listener._HEADER_TIMEOUT_MS", 300)
    async with RunningCore(tmp_path / "pki") as running:
        url = httpx.URL(running.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()

"""The real `openai` package against a real edge."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.edge_node.worlds import (
    ACME,
    EUROBANK,
    MODEL,
    RTT_MS,
    TEXT,
    Edge,
    dying,
    running,
    silent,
    upstream,
)

ASKED = [{"role": "user", "content": "Where to?"}]


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running(upstream()) as edge:
        yield edge


def client(edge: Edge, key: str = ACME, **options: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=key, max_retries=0, **options)  # type: ignore[arg-type]


async def test_chat(edge: Edge) -> None:
    async with client(edge) as api:
        done = await api.chat.completions.create(model=MODEL, messages=ASKED)  # type: ignore[arg-type]
        assert done.choices[0].message.content == TEXT
        assert done.choices[0].finish_reason == "stop"
        assert done.usage is not None and done.usage.total_tokens == 16
        assert done._request_id


@pytest.mark.parametrize("temperature", [0, 1])
async def test_streams(edge: Edge, temperature: int) -> None:
    async with client(edge) as api:
        for _ in range(3):  # with temperature 0 the second and third are cached
            stream = await api.chat.completions.create(
                model=MODEL,
                messages=ASKED,  # type: ignore[arg-type]
                temperature=temperature,
                stream=True,
                stream_options={"include_usage": True},
            )
            text, usage = "", None
            async for chunk in stream:
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                usage = chunk.usage or usage
            assert text == TEXT
            assert usage is not None and usage.completion_tokens == 9
        assert len(edge.regions.sent) == (1 if temperature == 0 else 3)


async def test_models(edge: Edge) -> None:
    async with client(edge) as api:
        assert [m.id async for m in api.models.list()] == [MODEL]
        assert (await api.models.retrieve(MODEL)).owned_by == "tradewind"
        with pytest.raises(openai.NotFoundError):
            await api.models.retrieve("nothing")


async def test_errors_have_the_types_that_the_package_expects(edge: Edge) -> None:
    async with client(edge, "sk-wrong") as api:
        with pytest.raises(openai.AuthenticationError) as caught:
            await api.chat.completions.create(model=MODEL, messages=ASKED)  # type: ignore[arg-type]
        assert caught.value.code == "invalid_api_key"
    async with client(edge) as api:
        with pytest.raises(openai.NotFoundError) as missing:
            await api.chat.completions.create(model="nothing", messages=ASKED)  # type: ignore[arg-type]
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as bad:
            await api.chat.completions.create(model=MODEL, messages=ASKED, temperature=9)  # type: ignore[arg-type]
        assert bad.value.param == "temperature"


async def test_a_deadline_is_an_error_of_the_server() -> None:
    async with running(upstream(frankfurt=silent("frankfurt"))) as edge, client(edge) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await api.chat.completions.create(
                model=MODEL,
                messages=ASKED,  # type: ignore[arg-type]
                extra_headers={"x-tradewind-deadline-ms": "200"},
            )
        assert caught.value.status_code == 504


async def test_a_broken_stream_raises_after_what_was_received() -> None:
    regions = upstream()
    regions.regions |= {name: dying(name, 3, cut=regions) for name in RTT_MS}
    async with running(regions) as edge, client(edge, EUROBANK) as api:
        stream = await api.chat.completions.create(model=MODEL, messages=ASKED, stream=True)  # type: ignore[arg-type]
        text = ""
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text == "The trade winds"
        assert "cut" in caught.value.message

"""Requests over the real overlay: mutual TLS, QUIC, frames."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.region_core.cores import MODEL, RunningCore, frame
from topology.overlay.errors import RegionFailure
from topology.overlay.frames import Accept, End, Tokens
from topology.overlay.tunnel import Exchange


def body(text: str = "Tell me of the sea.", **changes: Any) -> bytes:
    asked = {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": text}]}
    return msgspec.json.encode(asked | changes)


async def read(exchange: Exchange) -> list[Accept | Tokens | End]:
    frames: list[Accept | Tokens | End] = []
    async with asyncio.timeout(20):
        while not frames or not isinstance(frames[-1], End):
            frames.append(await exchange.next())
    return frames


def ids(frames: list[Any]) -> list[int]:
    return [token for f in frames if isinstance(f, Tokens) for token in f.ids]


def text(frames: list[Any]) -> str:
    return "".join(f.text for f in frames if isinstance(f, Tokens))


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("instant", [False, True])
async def test_an_exchange(tmp_path: Path, instant: bool) -> None:
    async with RunningCore(tmp_path / "pki", sim={"instant": instant}) as running:
        frames = await read(running.tunnel.open(frame(), body(max_tokens=9)))
        assert isinstance(frames[0], Accept)
        assert (frames[0].region, frames[0].engine) == ("frankfurt", "sim")
        assert next(f.position for f in frames if isinstance(f, Tokens)) == 0
        end = frames[-1]
        assert isinstance(end, End)
        assert (end.finish_reason, end.completion_tokens) == ("length", 9)
        assert len(ids(frames)) == 9 and text(frames).startswith("sim:")
        assert running.core.service.counters.accepted == 1


async def test_going_on_behind_what_the_client_has(tmp_path: Path) -> None:
    async with RunningCore(tmp_path / "pki") as running:
        whole = await read(running.tunnel.open(frame("a"), body(max_tokens=12)))
        resume = tuple(ids(whole)[:5])
        again = frame("a", attempt=2, resume_tokens=resume)
        rest = await read(running.tunnel.open(again, body(max_tokens=12)))
        assert list(resume) + ids(rest) == ids(whole)
        assert next(f for f in rest if isinstance(f, Tokens)).position == 5
        assert msgspec.structs.replace(rest[-1], load=0.0) == msgspec.structs.replace(
            whole[-1], load=0.0
        )


@pytest.mark.parametrize(
    ("sent", "changes", "code", "status", "param", "reason"),
    [
        (b"{", {}, "invalid", 400, None, None),
        (body(temperature=9), {}, "invalid", 400, "temperature", "invalid_value"),
        (body(model="x"), {"model": "x"}, "unknown_model", 404, "model", "model_not_found"),
        (body(max_tokens=100_000), {}, "invalid", 400, "max_tokens", "invalid_value"),
        (body("x" * 200_000), {}, "invalid", 400, "messages", "context_length_exceeded"),
        (body(), {"resume_tokens": (0,)}, "invalid", 400, "resume_tokens", None),
    ],
)
async def test_failures(
    tmp_path: Path,
    sent: bytes,
    changes: Any,
    code: str,
    status: int,
    param: str | None,
    reason: str | None,
) -> None:
    async with RunningCore(tmp_path / "pki") as running:
        with pytest.raises(RegionFailure) as caught:
            await read(running.tunnel.open(frame(**changes), sent))
        failure = caught.value.failure
        found = (failure.code, failure.status, failure.param, failure.reason)
        assert found == (code, status, param, reason)
        assert not failure.retryable


async def test_a_deadline(tmp_path: Path) -> None:
    slow = {"step_ms": 50.0}
    async with RunningCore(tmp_path / "pki", sim=slow) as running:
        with pytest.raises(RegionFailure) as caught:
            await read(running.tunnel.open(frame(deadline_ms=200), body()))
        assert caught.value.failure.code == "deadline" and caught.value.failure.status == 504


async def test_cancelling_reaches_the_engine(tmp_path: Path) -> None:
    slow = {"step_ms": 20.0, "answer_tokens_min": 500, "answer_tokens_max": 500}
    scheduling = {"slots": 1, "waiting": 1}
    async with RunningCore(tmp_path / "pki", sim=slow, scheduling=scheduling) as running:
        service = running.core.service
        first = running.tunnel.open(frame("1"), body())
        assert isinstance(await first.next(), Accept)
        assert isinstance(await first.next(), Tokens)
        second = running.tunnel.open(frame("2"), body(max_tokens=1))
        assert isinstance(await second.next(), Accept)
        with pytest.raises(RegionFailure) as caught:
            await read(running.tunnel.open(frame("3"), body()))
        assert caught.value.failure.code == "overloaded" and caught.value.failure.retryable
        first.cancel()
        assert isinstance((await read(second))[-1], End)
        await until(lambda: service.report().running == 0)
        assert service.counters.cancelled == 1


async def test_a_lost_client_is_cancelled(tmp_path: Path) -> None:
    slow = {"step_ms": 20.0, "answer_tokens_min": 500, "answer_tokens_max": 500}
    async with RunningCore(tmp_path / "pki", sim=slow) as running:
        exchange = running.tunnel.open(frame("1"), body(max_tokens=500))
        assert isinstance(await exchange.next(), Accept)
        await running.tunnel.close()
        await until(lambda: running.core.service.report().running == 0)


async def test_many_exchanges_at_once(tmp_path: Path) -> None:
    async with RunningCore(tmp_path / "pki") as running:
        bodies = [body(f"Question {n}", max_tokens=5 + n % 7) for n in range(60)]
        alone = [text(await read(running.tunnel.open(frame(f"a{n}"), bodies[n]))) for n in (3, 7)]
        every = await asyncio.gather(
            *(read(running.tunnel.open(frame(f"b{n}"), sent)) for n, sent in enumerate(bodies))
        )
        assert [text(every[3]), text(every[7])] == alone
        assert all(len(ids(frames)) == 5 + n % 7 for n, frames in enumerate(every))


async def test_shutting_down(tmp_path: Path) -> None:
    slow = {"step_ms": 10.0}
    async with RunningCore(tmp_path / "pki", sim=slow) as running:
        exchange = running.tunnel.open(frame("1"), body(max_tokens=10))
        assert isinstance(await exchange.next(), Accept)
        closing = asyncio.create_task(running.core.close())
        await asyncio.sleep(0.02)
        with pytest.raises(RegionFailure) as caught:
            await read(running.tunnel.open(frame("2"), body()))
        assert caught.value.failure.code == "draining" and caught.value.failure.retryable
        frames = await read(exchange)
        assert len(ids(frames)) == 10
        await closing

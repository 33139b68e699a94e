"""A service with a recording sink, for tests of what becomes of requests."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from region_core.engine.base import Engine, FinishReason
from region_core.job import Failed, Job
from region_core.prepare import Offer
from region_core.scheduling.batcher import Limits
from region_core.service import CoreService
from runtime.clock import Clock, SystemClock
from topology.wire.chat import ChatRequest, Message

MODEL = "m"
LIMITS = Limits(slots=4, step_tokens=512, chunk_tokens=128, waiting=8)
FAR = 1e12


class Recorder:
    """A sink that remembers, and checks the order of what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.queue_ms = -1.0
        self.ids: list[int] = []
        self.text = ""
        self.pieces: list[str] = []
        self.finish: FinishReason | None = None
        self.usage = (-1, -1)
        self.age_s: float | None = None
        self.failure: Failed | None = None
        self.base: int | None = None
        self.over = asyncio.Event()
        self.began = asyncio.Event()

    def accepted(self, queue_ms: float, load: float) -> None:
        assert not self.calls and load >= 0
        self.calls.append("accepted")
        self.queue_ms = queue_ms

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None:
        assert self.calls[0] == "accepted" and not self.over.is_set()
        if self.base is None:
            self.base = position
        assert position == self.base + len(self.ids)
        self.calls.append("tokens")
        self.ids += ids
        self.text += text
        self.pieces.append(text)
        self.began.set()

    def end(
        self,
        finish_reason: FinishReason,
        prompt_tokens: int,
        completion_tokens: int,
        age_s: float | None = None,
    ) -> None:
        assert not self.over.is_set()
        self.calls.append("end")
        self.finish = finish_reason
        self.usage = (prompt_tokens, completion_tokens)
        self.age_s = age_s
        self.over.set()

    def failed(self, failed: Failed) -> None:
        assert not self.over.is_set()
        self.calls.append("failed")
        self.failure = failed
        self.over.set()

    async def done(self) -> Recorder:
        await asyncio.wait_for(self.over.wait(), 60)
        return self


class World:
    """A started service. Use `async with`."""

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Limits = LIMITS,
        clock: Clock | None = None,
        queue_target_s: float | None = None,
        protect: bool = True,
        **offer: Any,
    ) -> None:
        found = {
            "model": MODEL,
            "context_tokens": engine.limits.context_tokens,
            "max_output_tokens": 256,
            "default_output_tokens": 64,
        }
        self.clock = clock or SystemClock()
        self.service = CoreService(
            engine,
            Offer(**(found | offer)),
            limits,
            self.clock,
            queue_target_s=queue_target_s,
            protect=protect,
        )
        self.engine = engine
        self._count = 0

    async def __aenter__(self) -> World:
        self.service.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.drain(0.0)

    def job(self, text: str = "Tell me of the sea.", **changes: Any) -> Job:
        self._count += 1
        of_job = {
            name: changes.pop(name)
            for name in ("resume", "urgency", "deadline_s", "request_id", "cursor", "tenant")
            if name in changes
        }
        asked = {"model": MODEL, "messages": (Message("user", text),), "temperature": 0.0}
        request = ChatRequest(**(asked | changes))
        job = Job(request=request, request_id=f"r{self._count}", deadline_s=FAR)
        return msgspec.structs.replace(job, **of_job)

    def ask(self, text: str = "Tell me of the sea.", **changes: Any) -> tuple[Recorder, Any]:
        sink = Recorder()
        return sink, self.service.submit(self.job(text, **changes), sink)

    async def answer(self, text: str = "Tell me of the sea.", **changes: Any) -> Recorder:
        sink, _ = self.ask(text, **changes)
        return await sink.done()

"""Clients that stream, one answer after the other, and note what they were told and when."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from tests.scenarios.story import Streams
from tests.scenarios.world import Running, question

FIRST_TOKEN_S = 20.0  # of every stream, before the story begins
LAST_TOKEN_S = 60.0  # of every stream, once it has ended


@dataclass(eq=False)
class Stream:
    """One answer as its client saw it. Times are the event loop's, in seconds."""

    tenant: str
    edge: str
    body: dict[str, Any]
    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    told: str = ""  # the error that it ended with, in the protocol's own form
    broken: str = ""  # how it ended where nobody said why
    pieces: list[float] = field(default_factory=list)  # when text came

    @property
    def whole(self) -> bool:
        return not self.told and not self.broken

    @property
    def silence_s(self) -> float:
        """The longest time between two pieces."""
        pairs = zip(self.pieces, self.pieces[1:], strict=False)
        return max((after - before for before, after in pairs), default=0.0)

    def take(self, line: str, now: float) -> bool:
        """One line of the reply; True at its end."""
        if not line.startswith("data: "):
            return False
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return True
        chunk = json.loads(data)
        if "error" in chunk:
            self.told = str(chunk["error"]["message"])
            return False
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") or ""
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if text:
                self.text += text
                self.pieces.append(now)
        return False


class Load:
    """So many streams at a time as the story says; half of them greedy, half seeded."""

    def __init__(self, running: Running, wanted: tuple[Streams, ...], seed: str) -> None:
        self._running = running
        self._wanted = wanted
        self._seed = seed
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.streams: list[Stream] = []

    async def start(self) -> None:
        """Return when every one of them has given its first token."""
        for index, wanted in enumerate(self._wanted):
            for slot in range(wanted.count):
                rng = Random(f"{self._seed}/{index}/{slot}")
                self._tasks.append(asyncio.create_task(self._keep_asking(wanted, rng)))
        async with asyncio.timeout(FIRST_TOKEN_S):
            while sum(bool(stream.pieces) for stream in self.streams) < len(self._tasks):
                for task in self._tasks:
                    if task.done():
                        await task
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """No new ones; those under way come to their end."""
        self._stopping = True
        async with asyncio.timeout(LAST_TOKEN_S):
            await asyncio.gather(*self._tasks)

    def abandon(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _keep_asking(self, wanted: Streams, rng: Random) -> None:
        while not self._stopping:
            stream = self._next(wanted, rng)
            self.streams.append(stream)
            await self._ask(stream)
            if not stream.whole:
                await asyncio.sleep(0.1)

    def _next(self, wanted: Streams, rng: Random) -> Stream:
        extra: dict[str, Any] = {"stream_options": {"include_usage": True}}
        if rng.random() < 0.5:
            extra |= {"temperature": 0.8, "seed": rng.randrange(1 << 31)}
        prompt = f"Tell of the wind {rng.randrange(1 << 60)}."
        body = question(prompt, wanted.tokens, stream=True, **extra)
        return Stream(wanted.tenant, wanted.edge, body)

    async def _ask(self, stream: Stream) -> None:
        running, now = self._running, asyncio.get_running_loop().time
        url = f"{running.edge_url(stream.edge)}/v1/chat/completions"
        headers = running.headers(stream.tenant)
        ended = False
        try:
            async with running.http.stream("POST", url, json=stream.body, headers=headers) as reply:
                if reply.status_code != 200:
                    error = json.loads(await reply.aread())["error"]
                    stream.told = f"HTTP {reply.status_code}: {error['message']}"
                    return
                async for line in reply.aiter_lines():
                    ended = stream.take(line, now()) or ended
        except (httpx.HTTPError, ValueError, KeyError) as error:
            stream.broken = f"{type(error).__name__}: {error}"
            return
        if not stream.told and not (ended and stream.finish_reason):
            stream.broken = f"it ended after {len(stream.pieces)} pieces"


async def differences(running: Running, streams: list[Stream]) -> list[str]:
    """Where streams said something else than an undisturbed core does; an answer that was not
    finished must have begun as that one's does."""
    gate = asyncio.Semaphore(8)

    async def compare(stream: Stream) -> str:
        async with gate:
            body = {k: v for k, v in stream.body.items() if k != "stream_options"}
            url = f"{running.reference_url}/v1/chat/completions"
            reply = (await running.http.post(url, json=body | {"stream": False})).json()
        choice = reply["choices"][0]
        expected = choice["message"]["content"]
        if not stream.whole:
            same = expected.startswith(stream.text)
            return "" if same else f"{stream.text!r} does not begin {expected!r}"
        if stream.text != expected:
            return f"{stream.text!r} instead of {expected!r}"
        if stream.finish_reason != choice["finish_reason"]:
            return f"finish {stream.finish_reason} instead of {choice['finish_reason']}"
        if stream.usage != reply["usage"]:
            return f"usage {stream.usage} instead of {reply['usage']}"
        return ""

    return [said for said in await asyncio.gather(*map(compare, streams)) if said]

"""Scripted clients: resolve the name from their city's subnet, connect to the address they got,
and ask with the real `openai` package, which does no retries of its own here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.rdatatype
import openai
from msgspec import Struct

from lab.report import Outcome
from lab.world import DNS_PORT, EDGE_PORT, MODEL, SERVICE, City

DNS_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 60.0
MAX_TOKENS = 20


class Question(Struct, frozen=True):
    """One thing to ask. `fresh`: not from a cache, so that a region must answer."""

    prompt: str
    stream: bool
    fresh: bool


QUESTIONS = (
    "What is the capital of Germany?",
    "What is the capital of Japan?",
    "Name one large river in Africa.",
    "What colour is the sky on a clear day?",
    "How many days are in a week?",
    "What do bees make?",
    "What is the largest ocean on Earth?",
    "Which planet is known as the Red Planet?",
    "What is the boiling point of water in Celsius?",
    "What language is spoken in Brazil?",
    "What is the capital of France?",
    "Name a fruit that is yellow.",
)


def questions(offset: int) -> Iterator[Question]:
    """Endless questions for one city: the first is asked twice, so that the second time shows
    the cache; for the others a region must answer. Every other one is streamed."""
    first = QUESTIONS[offset % len(QUESTIONS)]
    yield Question(first, stream=False, fresh=False)
    yield Question(first, stream=True, fresh=False)
    number = 0
    while True:
        number += 1
        prompt = QUESTIONS[(offset + number) % len(QUESTIONS)]
        yield Question(prompt, stream=number % 2 == 1, fresh=True)


async def resolve(city: City, server: str = "127.0.0.1", port: int = DNS_PORT) -> tuple[str, ...]:
    """The service's A records, asked as a resolver that forwards the client's subnet would."""
    subnet = dns.edns.ECSOption.from_text(city.subnet)
    query = dns.message.make_query(SERVICE, dns.rdatatype.A, use_edns=0, options=[subnet])
    reply, _ = await dns.asyncquery.udp_with_fallback(query, server, DNS_TIMEOUT_S, port=port)
    return tuple(
        record.address
        for answer in reply.answer
        if answer.rdtype == dns.rdatatype.A
        for record in answer
    )


class Client:
    """One city's client. `now` gives seconds since the story began."""

    def __init__(
        self, city: City, tenant: str, api_key: str, offset: int, now: Callable[[], float]
    ) -> None:
        self.city = city
        self.tenant = tenant
        self._api_key = api_key
        self._questions = questions(offset)
        self._now = now
        self._connections: dict[str, openai.AsyncOpenAI] = {}  # by address: one per edge at most

    async def close(self) -> None:
        for connection in self._connections.values():
            await connection.close()

    def _connection(self, address: str) -> openai.AsyncOpenAI:
        held = self._connections.get(address)
        if held is None:
            held = self._connections[address] = openai.AsyncOpenAI(
                api_key=self._api_key,
                base_url=f"http://{address}:{EDGE_PORT}/v1",
                max_retries=0,
                timeout=ANSWER_TIMEOUT_S,
            )
        return held

    async def ask_next(self, phase: Callable[[], str]) -> Outcome:
        """Ask this city's next question; a failure is an `Outcome` too."""
        question = next(self._questions)
        begun_s = self._now()
        noted = _Noted(phase=phase())
        try:
            noted.addresses = await resolve(self.city)
            await self._ask(question, noted, begun_s)
        except openai.APIStatusError as error:
            noted.status = error.status_code
            noted.error = f"HTTP {error.status_code}: {_message(error)}"
        except Exception as error:  # noqa: BLE001 - whatever went wrong, this request failed
            noted.error = f"{type(error).__name__}: {error}"
        total_ms = (self._now() - begun_s) * 1000
        headers = noted.headers
        return Outcome(
            city=self.city.name,
            tenant=self.tenant,
            dns_answer=noted.addresses,
            edge=headers.get("x-tradewind-edge", ""),
            served_by=headers.get("x-tradewind-served-by", ""),
            region=headers.get("x-tradewind-region", ""),
            path=headers.get("x-tradewind-path", ""),
            status=noted.status,
            stream=question.stream,
            ttft_ms=round(noted.ttft_ms if noted.ttft_ms is not None else total_ms, 1),
            total_ms=round(total_ms, 1),
            prompt=question.prompt,
            answer=noted.answer,
            error=noted.error,
            begun_s=round(begun_s, 4),
            phase=noted.phase,
        )

    async def _ask(self, question: Question, noted: _Noted, begun_s: float) -> None:
        if not noted.addresses:
            raise LookupError(f"no address for {SERVICE}")
        request: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question.prompt}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
        }
        if question.fresh:
            request["extra_headers"] = {"cache-control": "no-store"}
        create = self._connection(noted.addresses[0]).chat.completions.with_raw_response.create
        if not question.stream:
            raw = await create(**request)
            noted.answered(raw)
            noted.answer = raw.parse().choices[0].message.content or ""
            return
        raw = await create(**request, stream=True)
        noted.answered(raw)
        async for chunk in raw.parse():
            if chunk.choices and chunk.choices[0].delta.content:
                if noted.ttft_ms is None:
                    noted.ttft_ms = (self._now() - begun_s) * 1000
                noted.answer += chunk.choices[0].delta.content
            if chunk.choices and chunk.choices[0].finish_reason:
                noted.finished = True
        if not noted.finished:
            noted.error = "the stream ended without a finish reason"


class _Noted:
    """What has been seen of a request so far."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.addresses: tuple[str, ...] = ()
        self.headers: Any = {}
        self.status = 0
        self.ttft_ms: float | None = None
        self.answer = ""
        self.error = ""
        self.finished = False

    def answered(self, raw: Any) -> None:
        self.status = raw.status_code
        self.headers = raw.headers


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    return str(body.get("message", body)) if isinstance(body, dict) else error.message


async def keep_asking(
    client: Client,
    phase: Callable[[], str],
    stop: asyncio.Event,
    record: Callable[[Outcome], None],
    pause_s: float = 0.3,
) -> None:
    """Ask again and again until `stop`; a request under way is finished."""
    while not stop.is_set():
        record(await client.ask_next(phase))
        await asyncio.sleep(pause_s)

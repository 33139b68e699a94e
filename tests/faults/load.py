"""Operators who write and clients who ask, all the time, with every outcome in the journal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import httpx

from control_plane.admin.client import AdminClient
from control_plane.admin.errors import AdminError
from runtime.clock import SystemClock
from tests.faults.checker import MARK, Fate, Journal, Request, Write, pairs_that_differ
from tests.faults.processes import API_KEY, EDGES, MODEL, REPLICAS, System, message
from topology.snapshot import Snapshot
from topology.wire.ads_client import AdsClient, AdsSettings
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import resource_pb2

SLOTS = 6  # pairs of tenants that are written, together, again and again
PROMPTS = 8
ANSWER_S = 15.0
WRITERS = 3
CLIENTS_PER_EDGE = 2


class Load:
    """Runs while the scenario does. `pause_s` between a writer's writes: quick on purpose."""

    def __init__(self, system: System, journal: Journal, rng: Random) -> None:
        self.system = system
        self.journal = journal
        self.rng = rng
        self.answers: dict[str, str] = {}  # prompt -> what it must always be answered with
        self.down: set[str] = set()  # edges that the scenario has stopped
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def acknowledged(self) -> int:
        return len(self.journal.of(Fate.ACKNOWLEDGED))

    async def start(self) -> None:
        await self._learn_answers()
        for _ in range(WRITERS):
            self._tasks.append(asyncio.create_task(self._write(Random(self.rng.random()))))
        for edge in EDGES:
            for _ in range(CLIENTS_PER_EDGE):
                self._tasks.append(asyncio.create_task(self._ask(edge, Random(self.rng.random()))))
        self._tasks.append(asyncio.create_task(self._observe()))

    async def stop(self) -> None:
        """Every write and request that was begun is heard out."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    def edge_down(self, edge: str) -> None:
        self.down.add(edge)
        self.journal.down.setdefault(edge, []).append(_now())

    def edge_up(self, edge: str) -> None:
        self.down.discard(edge)
        self.journal.down[edge].append(_now())

    # Operators

    async def _write(self, rng: Random) -> None:
        while not self._stop.is_set():
            # Who asks one replica alone hears its own word for what became of a write.
            clients = rng.choice((self.system.admins, self.system.loyal))
            client = clients[rng.choice(REPLICAS)]
            write = self._another(rng)
            await self.send(client, *write)
            await asyncio.sleep(rng.uniform(0.0, 0.15))

    def _another(self, rng: Random) -> tuple[Write, pb.ApplyRequest]:
        """Mostly both halves of a slot, at times neither; and what must be refused."""
        slot = f"slot-{rng.randrange(SLOTS)}"
        names = [f"{slot}-a", f"{slot}-b"]
        draw = rng.random()
        if draw < 0.1:
            write = self.journal.next_write([], names)
            keys = [pb.Key(kind="Tenant", name=name) for name in names]
            return write, pb.ApplyRequest(removes=keys, reason=write.reason, force=["many"])
        write = self.journal.next_write(names)
        request = pb.ApplyRequest(puts=tenants(write), reason=write.reason, force=["many"])
        if draw < 0.2:
            request.puts.append(_route_to_nowhere())  # invalid: all of it must be refused
        elif draw < 0.25:
            request.dry_run = True
        elif draw < 0.35:
            request.puts[1].json = request.puts[1].json.replace(b"}}", b'}, "revision": 3}')
        return write, request

    async def send(self, client: AdminClient, write: Write, request: pb.ApplyRequest) -> None:
        begun_s = _now()
        try:
            response = await asyncio.to_thread(client.apply, request)
        except AdminError as error:
            write.fate = Fate.AMBIGUOUS if error.ambiguous else Fate.REFUSED
            write.said = f"{error.code}: {error.message[:200]}"
        else:
            write.fate = Fate.REFUSED if request.dry_run else Fate.ACKNOWLEDGED
            write.revision, write.changed = response.revision, response.applied
            write.said = "a dry run" if request.dry_run else ""
        write.took_s = _now() - begun_s

    # Clients

    async def _learn_answers(self) -> None:
        async with httpx.AsyncClient(timeout=ANSWER_S) as http:
            for number in range(PROMPTS):
                prompt = f"Where does wind {number} blow?"
                text, _ = await _answer(http, self.system.edge_url("london"), prompt, stream=False)
                self.answers[prompt] = text

    async def _ask(self, home: str, rng: Random) -> None:
        async with httpx.AsyncClient(timeout=ANSWER_S) as http:
            while not self._stop.is_set():
                await self._ask_once(http, home, rng)
                await asyncio.sleep(rng.uniform(0.02, 0.15))

    async def _ask_once(self, http: httpx.AsyncClient, home: str, rng: Random) -> None:
        """At home; where that edge is down, at the other one, as geo-DNS would have it."""
        prompt, stream = rng.choice(list(self.answers)), rng.random() < 0.5
        edges = [home, *(edge for edge in EDGES if edge != home)]
        if home in self.down:
            edges = edges[1:]
        begun_s, tried, region, error = _now(), [], "", ""
        for edge in edges:
            tried.append(edge)
            try:
                text, region = await _answer(http, self.system.edge_url(edge), prompt, stream)
            except (httpx.HTTPError, ValueError, KeyError) as failure:
                error = f"{type(failure).__name__}: {failure}"
                # Only an edge that was taken away is a reason to try another.
                if isinstance(failure, httpx.TransportError):
                    continue
                break
            error = "" if text == self.answers[prompt] else f"a wrong answer: {text!r}"
            break
        took_s = _now() - begun_s
        self.journal.requests.append(Request(begun_s, took_s, tuple(tried), region, error))

    # A node that looks at every snapshot

    async def _observe(self) -> None:
        client = AdsClient(
            "edge/observer",
            self.system.endpoints,
            self.system.identity("edge/observer"),
            None,
            self._look,
            SystemClock(),
            Random(self.rng.random()),
            AdsSettings(connect_timeout_ms=2_000, backoff_min_ms=50, backoff_max_ms=500),
        )
        client.start()
        await self._stop.wait()
        await client.close()

    def _look(self, snapshot: Snapshot) -> None:
        marks = {n: getattr(t, MARK) for n, t in snapshot.tenants.items() if n.startswith("slot-")}
        self.journal.sights += pairs_that_differ(marks)
        refused = {write.mark for write in self.journal.of(Fate.REFUSED)}
        self.journal.sights += [
            f"{n} shows a refused write" for n, m in marks.items() if m in refused
        ]


@asynccontextmanager
async def under_load(system: System, journal: Journal, rng: Random) -> AsyncIterator[Load]:
    load = Load(system, journal, rng)
    await load.start()
    try:
        yield load
    finally:
        await load.stop()


def tenants(write: Write) -> list[resource_pb2.Resource]:
    return [
        message({"kind": "Tenant", "name": name, "spec": {MARK: write.mark}}) for name in write.puts
    ]


def _route_to_nowhere() -> resource_pb2.Resource:
    spec = {"models": ["*"], "tenants": ["*"], "regions": ["nowhere"]}
    return message({"kind": "Route", "name": "lost", "spec": spec})


async def _answer(http: httpx.AsyncClient, url: str, prompt: str, stream: bool) -> tuple[str, str]:
    """The whole text and the region it came from. Raises `ValueError` for half an answer."""
    messages = [{"role": "user", "content": prompt}]
    body = {"model": MODEL, "messages": messages, "stream": stream, "temperature": 0}
    headers = {"authorization": f"Bearer {API_KEY}", "cache-control": "no-store"}
    request = http.build_request("POST", f"{url}/v1/chat/completions", json=body, headers=headers)
    reply = await http.send(request)
    if reply.status_code != 200:
        raise ValueError(f"HTTP {reply.status_code}: {reply.text[:200]}")
    region = reply.headers.get("x-tradewind-region", "")
    if not stream:
        return reply.json()["choices"][0]["message"]["content"], region
    events = [part.removeprefix("data: ") for part in reply.text.strip().split("\n\n")]
    if events[-1] != "[DONE]":
        raise ValueError(f"a stream that ends with {events[-1][:80]!r}")
    deltas = [choice["delta"] for e in events[:-1] for choice in json.loads(e).get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas), region


def _now() -> float:
    return asyncio.get_running_loop().time()

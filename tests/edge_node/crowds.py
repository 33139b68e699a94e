"""An edge's application and its clients without sockets, in a loop whose time jumps.

A client is what granian would hand over: it can leave, and read as slowly as it likes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from edge_node.forward.memory import MemoryUpstream
from edge_node.front import event_stream, recipient, relay
from edge_node.front.app import EdgeApp
from edge_node.front.call import ClientGone
from tests.director.virtual import LoopClock, run
from tests.edge_node.worlds import ACME, ask, events, snapshot, streamed_text
from topology.snapshot import Snapshot

FOREVER = float("inf")


class Scope:
    path, method, http_version = "/v1/chat/completions", "POST", "1.1"
    server, client = "127.0.0.1:1", "127.0.0.1:2"

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers
        self.reader: Client | None = None


class Stream:
    """The client has what was sent; it ends when nothing refers to this any more."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def send_bytes(self, data: bytes) -> Any:
        assert data
        if self._client.gone:
            raise ClientGone
        self._client.chunks.append(data)
        self._client.sent_bytes += len(data)
        return _nothing()


class _nothing:
    def __await__(self) -> Any:
        return iter(())


class Client:
    """`reads_per_s`: bytes; what it does not read stays where it is."""

    def __init__(
        self,
        body: dict[str, Any],
        *,
        key: str = ACME,
        reads_per_s: float = FOREVER,
        **headers: str,
    ) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.scope = Scope({"authorization": f"Bearer {key}"} | named)
        self.scope.reader = self
        self.body = json.dumps(body).encode()
        self.reads_per_s = reads_per_s
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.sent_bytes = 0
        self.replies = 0
        self.gone = False
        self.leaving: asyncio.Future[None] | None = None
        self.streams: list[weakref.ref[Stream]] = []
        self.began = 0.0
        self.task: asyncio.Task[None] | None = None

    # As granian has it

    async def __call__(self) -> bytes:
        return self.body

    def __aiter__(self) -> Any:
        return self._parts()

    async def _parts(self) -> Any:
        yield self.body

    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        self._reply(status, headers)
        self.chunks.append(body)

    def response_stream(self, status: int, headers: Any) -> Stream:
        self._reply(status, headers)
        self.began = asyncio.get_running_loop().time()
        stream = Stream(self)
        self.streams.append(weakref.ref(stream))
        return stream

    def client_disconnect(self) -> Any:
        self.leaving = asyncio.get_running_loop().create_future()
        if self.gone:
            self.leaving.set_result(None)
        return self.leaving

    def _reply(self, status: int, headers: Any) -> None:
        if self.gone:
            raise ClientGone
        self.replies += 1
        assert self.replies == 1, "a client was answered twice"
        self.status = status
        self.headers = dict(headers)

    # As the test has it

    def leave(self) -> None:
        self.gone = True
        if self.leaving is not None and not self.leaving.done():
            self.leaving.set_result(None)

    @property
    def read_bytes(self) -> int:
        if self.reads_per_s == FOREVER:
            return self.sent_bytes
        passed_s = asyncio.get_running_loop().time() - self.began
        return min(self.sent_bytes, int(passed_s * self.reads_per_s))

    @property
    def ended(self) -> bool:
        """Whether it has been told that no more comes."""
        return self.replies == 1 and all(stream() is None for stream in self.streams)

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def text(self) -> str:
        """Of the answer, as far as it was sent."""
        data = b"".join(self.chunks)
        if not data:
            return ""
        if self.streamed:
            return streamed_text(events(data.decode()))
        found: str = json.loads(data)["choices"][0]["message"]["content"]
        return found

    @property
    def whole(self) -> bool:
        """Whether it was given an answer to its end, once."""
        data = b"".join(self.chunks)
        if self.status != 200 or not data:
            return False
        if not self.streamed:
            return True
        return data.count(b"data: [DONE]") == 1 and data.endswith(b"data: [DONE]\n\n")

    @property
    def error(self) -> str:
        """Its code; "" where there was none."""
        data = b"".join(self.chunks).decode()
        if not data:
            return ""
        last = events(data)[-1] if self.streamed else json.loads(data)
        return str(last["error"]["code"]) if isinstance(last, dict) and "error" in last else ""


class Crowd:
    """One edge, and clients by the order in which they came."""

    def __init__(self, regions: MemoryUpstream, config: Snapshot | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.regions = regions
        self.app = EdgeApp("london", regions, LoopClock(), Random(1), loop.time)
        self.app.use(config or snapshot())
        self.clients: list[Client] = []

    @property
    def sharing(self) -> Any:
        return self.app._chat.sharing

    def come(self, client: Client) -> Client:
        self.clients.append(client)
        client.task = asyncio.create_task(self.app.__rsgi__(client.scope, client))
        return client

    def ask(self, client_s: dict[str, Any] | None = None, **extra: Any) -> Client:
        """A client with the question that all have."""
        return self.come(Client(ask(temperature=0, **extra), **(client_s or {})))

    async def served(self) -> None:
        """Return once every client's task is over."""
        await asyncio.gather(*(c.task for c in self.clients if c.task is not None))

    async def settled(self) -> None:
        """Nothing is left of what they asked."""
        await self.quiet()
        gc.collect()
        for client in self.clients:
            assert client.ended or client.gone
        assert not [o for o in gc.get_objects() if type(o).__name__ in ("Work", "Audience")]

    async def quiet(self) -> None:
        """Nothing goes on any more."""
        await self.served()
        while self.regions.closing:
            await asyncio.sleep(0)
        await asyncio.sleep(2 * event_stream.LOOK_AGAIN_S)
        assert len(self.app.flights) == 0
        assert not self.sharing._works and not self.sharing._lingering
        assert not len(self.app.forwarder.watch)
        me = asyncio.current_task()
        assert [t for t in asyncio.all_tasks() if t is not me] == []


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients read what they are said to; a few hundred bytes wait for each at most."""

    def read(scope: Any) -> int | None:
        return int(scope.reader.read_bytes)

    monkeypatch.setattr(relay, "acknowledged", read)
    monkeypatch.setattr(recipient, "acknowledged", read)
    monkeypatch.setattr(event_stream, "MOST_UNREAD_BYTES", 600)
    monkeypatch.setattr(event_stream, "LOOK_EVERY_BYTES", 100)


def in_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run `main`, whose seconds take no time."""
    run(main)

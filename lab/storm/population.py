"""The population, in a process of its own: sends each request when it is due, whatever became of
the others (an open loop), and sends again as the article's clients did.

    python -m lab.storm.population SETTINGS

writes `rows` at the end (also after SIGTERM) and a line to `live` twice a second.
"""

from __future__ import annotations

import asyncio
import gc
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import uvloop
from msgspec import Struct

from edge_node.errors import NO_ROOM
from lab.storm.event import Ask, Phase, Population, Share, next_try_s, plan, question_text
from lab.storm.http_client import Broken, NoConnection, Pool, Reply
from lab.storm.rows import Records, Row, write
from topology.cursor import TIERS

PATH = "/v1/chat/completions"
_LIVE_S = 0.5
_FILES_SPARE = 200
_ANSWER_ID = re.compile(rb'"id":\s*"([^"]+)"')
_ID_WITHIN = 512  # bytes
_MAX_RETRY_AFTER_S = 600.0


class Settings(Struct, frozen=True, kw_only=True):
    """What the process is told."""

    phases: tuple[Phase, ...]
    cities: tuple[Share, ...]
    population: Population
    seed: int
    urls: dict[str, str]  # by city: where its clients send to
    keys: dict[str, str]  # by tenant
    model: str
    patience_s: float  # after the last request was due; what is not answered then has failed
    rows: str  # files that are written
    live: str


class Live(Struct, frozen=True):
    """Half a second as the population saw it. By tier, in the order of `TIERS`."""

    at_s: float
    due: tuple[int, ...]
    sent: int  # tries
    answered: tuple[int, ...]
    by_region: int
    failed: tuple[int, ...]
    p99_ms: tuple[float, ...]  # of the whole answer, of those answered; -1: none was


class _Answer(Struct):
    """What is read of an answer that came whole."""

    choices: list[Any]


class _ErrorBody(Struct):
    error: dict[str, Any]


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode


class _Counts:
    """Since the last line of `live`."""

    def __init__(self) -> None:
        self.due = [0] * len(TIERS)
        self.sent = 0
        self.answered = [0] * len(TIERS)
        self.by_region = 0
        self.failed = [0] * len(TIERS)
        self.latencies: list[list[float]] = [[] for _ in TIERS]

    def line(self, at_s: float) -> Live:
        p99 = tuple(
            round(sorted(some)[int(0.99 * (len(some) - 1))] * 1000, 1) if some else -1.0
            for some in self.latencies
        )
        return Live(
            round(at_s, 2),
            tuple(self.due),
            self.sent,
            tuple(self.answered),
            self.by_region,
            tuple(self.failed),
            p99,
        )


class Clients:
    """Everybody who asks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._who = settings.population
        self._pool = Pool(self._who.connections)
        self._hosts = {city: url.split("//", 1)[1] for city, url in settings.urls.items()}
        self._began_s = 0.0
        self._lags: list[float] = []
        self._counts = _Counts()
        self._texts: dict[tuple[str, int], int] = {}
        self._wrong = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.rows: list[Row] = []

    async def run(self, out: BinaryIO) -> None:
        """Until the last request has ended, or its clients' patience has."""
        settings = self._settings
        asks = list(plan(settings.phases, settings.cities, self._who, settings.seed))
        loop = asyncio.get_running_loop()
        gc.freeze()
        gc.disable()  # a run is short and bounded; a collection would be a pause of everybody
        self._began_s = time.monotonic()
        live = asyncio.create_task(self._tell(out))
        begun = loop.time()
        timers = [
            loop.call_at(begun + ask.due_s, self._begin, ask, ask is asks[-1]) for ask in asks
        ]
        try:
            if asks:
                await self._last
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=settings.patience_s)
        finally:
            for timer in timers:
                timer.cancel()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            live.cancel()
            self._pool.close()

    def records(self) -> Records:
        used = resource.getrusage(resource.RUSAGE_SELF)
        lags = sorted(self._lags) or [0.0]
        return Records(
            began_s=self._began_s,
            rows=tuple(sorted(self.rows, key=lambda row: row.number)),
            lag_p99_ms=round(lags[int(0.99 * (len(lags) - 1))] * 1000, 2),
            lag_max_ms=round(lags[-1] * 1000, 2),
            cpu_s=round(used.ru_utime + used.ru_stime, 2),
            connections_max=self._pool.most,
            wrong=self._wrong,
        )

    def _begin(self, ask: Ask, last: bool) -> None:
        self._lags.append(self._now() - ask.due_s)
        self._counts.due[TIERS.index(ask.tier)] += 1
        task = asyncio.ensure_future(_Client(self, ask).run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if last and not self._last.done():
            self._last.set_result(None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._last.done():
            self._last.set_exception(error)  # a mistake of ours: the run is worth nothing

    def _now(self) -> float:
        return time.monotonic() - self._began_s

    async def _tell(self, out: BinaryIO) -> None:
        """A line at once, by which others know when the run began, and then one after the other."""
        while True:
            counts, self._counts = self._counts, _Counts()
            out.write(msgspec.json.encode(counts.line(self._now())) + b"\n")
            out.flush()
            await asyncio.sleep(_LIVE_S)

    # For `_Client`

    def since(self, at_s: float) -> float:
        """Seconds since the run began, of a moment on the monotonic clock."""
        return round(at_s - self._began_s, 4)

    async def send(self, ask: Ask, request: bytes) -> Reply:
        self._counts.sent += 1
        return await self._pool.ask(self._settings.urls[ask.city], request, self._who.timeout_s)

    def written(self, ask: Ask) -> bytes:
        """The request as it goes on the wire, the same at each try."""
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": question_text(ask.question)}],
            "max_tokens": self._who.max_tokens,
            "user": ask.user,
        }
        if ask.deterministic:
            body["temperature"] = 0
        if ask.streamed:
            body["stream"] = True
        data = msgspec.json.encode(body)
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {self._hosts[ask.city]}\r\n"
            f"authorization: Bearer {settings.keys[ask.tenant]}\r\n"
            "content-type: application/json\r\n"
            f"x-request-id: storm-{settings.seed}-{ask.number}\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    def same(self, ask: Ask, text: str) -> bool:
        """Whether a deterministic question was answered as it was before."""
        if not ask.deterministic:
            return True
        known = self._texts.setdefault((ask.tenant, ask.question), hash(text))
        if known != hash(text):
            self._wrong += 1
            return False
        return True

    def keep(self, row: Row) -> None:
        self.rows.append(row)
        tier = TIERS.index(row.tier)
        if row.ok:
            self._counts.answered[tier] += 1
            self._counts.by_region += row.served_by in ("", "region")
            self._counts.latencies[tier].append(row.whole_s)
        else:
            self._counts.failed[tier] += 1


class _Client:
    """One request, through all its tries."""

    def __init__(self, clients: Clients, ask: Ask) -> None:
        self._clients = clients
        self._ask = ask
        self._sends: list[float] = []
        self._timeouts = self._refusals = 0
        self._upstream = False
        self._reply: Reply | None = None
        self._error = "unfinished"
        self._ok = False

    async def run(self) -> None:
        clients, ask, who = self._clients, self._ask, self._clients._who
        request = clients.written(ask)
        try:
            for number in range(who.tries):
                pause_s = await self._try(request)
                if pause_s is None or number + 1 == who.tries:
                    break
                await asyncio.sleep(pause_s)
        finally:
            clients.keep(self._row())

    async def _try(self, request: bytes) -> float | None:
        """One try; how long to wait for the next, or None when there is to be none."""
        clients, ask, who = self._clients, self._ask, self._clients._who
        self._sends.append(clients.since(time.monotonic()))
        self._reply, self._error = None, "unfinished"
        try:
            reply = self._reply = await clients.send(ask, request)
        except TimeoutError:
            self._timeouts += 1
            self._error = "timeout"
            return next_try_s(who, ask.obedient, False, None)
        except NoConnection as error:
            self._error = f"no connection: {error}"
            return next_try_s(who, ask.obedient, False, None)
        except Broken as error:
            self._error = f"broken: {error}"
            return next_try_s(who, ask.obedient, False, None)
        if reply.status == 200:
            self._upstream = True
            self._error = _fault(reply, ask.streamed, lambda text: clients.same(ask, text))
            self._ok = not self._error
            return None if self._ok else next_try_s(who, ask.obedient, False, None)
        self._error, regions_own = _told(reply)
        self._upstream = self._upstream or regions_own
        if reply.status in (429, 503):
            self._refusals += 1
            since_s = clients.since(time.monotonic()) - ask.due_s
            given_s = _retry_after_s(reply.headers)
            return next_try_s(who, ask.obedient, True, given_s, since_s)
        return next_try_s(who, ask.obedient, False, None) if reply.status >= 500 else None

    def _row(self) -> Row:
        ask, reply, since = self._ask, self._reply, self._clients.since
        done_s = reply.done_s if reply is not None else time.monotonic()
        first_s = -1.0
        if reply is not None and self._ok:
            first_s = reply.first_s if ask.streamed and reply.first_s > 0 else reply.done_s
        return Row(
            ask.number,
            ask.phase,
            round(ask.due_s, 4),
            ask.city,
            ask.tier,
            ask.tenant,
            ask.deterministic,
            ask.streamed,
            tuple(self._sends),
            reply.status if reply is not None else 0,
            self._error,
            reply.header(b"x-tradewind-served-by") if reply is not None else "",
            reply.header(b"x-tradewind-quality") if reply is not None else "",
            reply.header(b"x-tradewind-region") if reply is not None else "",
            since(first_s) if first_s > 0 else -1.0,
            since(done_s),
            self._ok,
            self._timeouts,
            self._refusals,
            self._upstream,
            _answer_id(reply) if reply is not None and self._ok else "",
            reply.header(b"x-tradewind-cache") if reply is not None else "",
        )


def _answer_id(reply: Reply) -> str:
    """The answer's name: those who share one are told the same."""
    found = _ANSWER_ID.search(reply.body, 0, _ID_WITHIN)
    return found[1].decode("latin-1") if found else ""


def _fault(reply: Reply, streamed: bool, same: Callable[[str], bool]) -> str:
    """What is wrong with an answer; "": nothing."""
    body = bytes(reply.body)
    if streamed:
        if not body.endswith(b"data: [DONE]\n\n"):
            return "cut"
        return "told of an error midway" if b'data: {"error"' in body else ""
    try:
        text = _decode_answer(body).choices[0]["message"]["content"]
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError):
        return "not an answer"
    return "" if same(text) else "another answer than before"


def _told(reply: Reply) -> tuple[str, bool]:
    """The error's code in OpenAI's form, or the status; and whether a region said so."""
    try:
        error = _decode_error(bytes(reply.body)).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return str(reply.status), False
    code = str(error.get("code") or reply.status)
    message = str(error.get("message") or "")
    return code, code == "overloaded" and not message.startswith(NO_ROOM)


def _retry_after_s(headers: Mapping[bytes, bytes]) -> float | None:
    for name, unit_s in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        given = headers.get(name)
        if given is not None and given.isdigit():
            return min(int(given) * unit_s, _MAX_RETRY_AFTER_S)
    return None


async def _main(settings: Settings, out: BinaryIO) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    _allow_files(settings.population.connections + _FILES_SPARE)
    clients = Clients(settings)
    try:
        await clients.run(out)
    except asyncio.CancelledError:
        pass  # told to stop: what there is, is written
    finally:
        write(Path(settings.rows), clients.records())


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: Iterable[str]) -> None:
    (path,) = arguments
    settings = msgspec.json.decode(Path(path).read_bytes(), type=Settings)
    with Path(settings.live).open("wb") as out:
        uvloop.run(_main(settings, out))


if __name__ == "__main__":
    main(sys.argv[1:])

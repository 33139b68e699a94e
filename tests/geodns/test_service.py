"""The whole process: snapshots and health in, answers and metrics out; replicas and workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import dns.asyncquery
import dns.edns
import dns.exception
import dns.message
import dns.rcode
import httpx
import pytest

from control_plane.geodns.errors import InvalidZone
from control_plane.geodns.service import DnsService, OnSnapshot, open_source
from control_plane.geodns.settings import DnsSettings
from runtime.clock import Clock, SystemClock
from runtime.errors import TradewindError
from runtime.metrics import Sample
from runtime.shutdown import Shutdown
from runtime.validation import InvalidDocument, convert
from tests.geodns.worlds import PLACES, ZONE, edge, snapshot, zone
from topology.snapshot import Snapshot
from topology.wire import last_good

TOKYO = dns.edns.ECSOption.from_text("198.18.1.0/24")


class Handed:
    """A snapshot source whose snapshots the test hands over."""

    def __init__(self) -> None:
        self.connected = True
        self.give: OnSnapshot = lambda _: None
        self.closed = False

    def start(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    def samples(self) -> tuple[Sample, ...]:
        return ()

    def __call__(
        self, settings: DnsSettings, on_snapshot: OnSnapshot, clock: Clock, rng: Random
    ) -> Handed:
        self.give = on_snapshot
        return self


def settings(**changes: Any) -> DnsSettings:
    raw: dict[str, Any] = {
        "listen": ["127.0.0.1:0"],
        "prefixes": PLACES,
        "metrics": "127.0.0.1:0",
        "health": {"interval_ms": 50, "timeout_ms": 200, "down_after": 1, "up_after": 1},
        "log_level": "error",
    }
    return convert(raw | changes, DnsSettings, "test")


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[tuple[DnsService, Handed]]:
    source = Handed()
    service = DnsService(settings(**changes), SystemClock(), Random(1), source)
    shutdown = Shutdown()
    try:
        await service.start(shutdown)
        yield service, source
    finally:
        await shutdown.close()
    assert source.closed


async def ask(service: DnsService, name: str = f"api.{ZONE}") -> dns.message.Message:
    query = dns.message.make_query(name, "A", options=[TOKYO])
    return await dns.asyncquery.udp(query, "127.0.0.1", 2, service.server.addresses[0][1])


def addresses(answer: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in answer.answer for item in rrset]


async def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def edges(count: int) -> AsyncIterator[tuple[int, list[asyncio.Server]]]:
    """Edges at 127.10.0.1 and up, all on one port, that say they are ready."""

    async def ready(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    first = await asyncio.start_server(ready, "127.10.0.1", 0)
    port = first.sockets[0].getsockname()[1]
    servers = [first]
    for number in range(2, count + 1):
        servers.append(await asyncio.start_server(ready, f"127.10.0.{number}", port))
    try:
        yield port, servers
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()


def three_edges(port: int, revision: int = 7) -> Snapshot:
    names = ("tokyo", "mumbai", "london")
    made = [edge(name, [f"127.10.0.{i}"], port) for i, name in enumerate(names, 1)]
    narrow = zone(names=[{"name": "api", "edges": ["*"], "answers": 2}])
    return snapshot(*made, narrow, edges=(), revision=revision)


async def test_from_nothing_to_a_snapshot_to_the_next() -> None:
    async with running(health={"enabled": False}) as (service, source):
        assert (await ask(service)).rcode() == dns.rcode.SERVFAIL
        source.give(three_edges(8080))
        assert addresses(await ask(service)) == ["127.10.0.1", "127.10.0.2"]
        source.give(snapshot(zone(names=[{"name": "www", "edges": ["*"]}]), revision=8))
        assert (await ask(service)).rcode() == dns.rcode.NXDOMAIN
        assert len(addresses(await ask(service, f"www.{ZONE}"))) == 2


async def test_a_snapshot_that_cannot_be_served_is_refused_and_the_old_one_stays() -> None:
    async with running(health={"enabled": False}) as (service, source):
        source.give(three_edges(8080))
        with pytest.raises(InvalidZone):
            source.give(snapshot(zone(contact="höst@x.test"), revision=8))
        assert addresses(await ask(service)) == ["127.10.0.1", "127.10.0.2"]


async def test_an_edge_that_dies_leaves_the_answers_and_comes_back() -> None:
    async with edges(3) as (port, servers), running() as (service, source):
        source.give(three_edges(port))
        healthy = lambda: service.prober.board.healthy  # noqa: E731
        await eventually(lambda: all(e.asked_s for e in service.prober.board.edges.values()))
        assert addresses(await ask(service)) == ["127.10.0.1", "127.10.0.2"]
        servers[0].close()
        await servers[0].wait_closed()
        await eventually(lambda: "tokyo" not in healthy())
        assert addresses(await ask(service)) == ["127.10.0.2", "127.10.0.3"]
        servers[0] = await asyncio.start_server(
            lambda r, w: w.write(b"HTTP/1.1 200 OK\r\n\r\n") or w.close(), "127.10.0.1", port
        )
        await eventually(lambda: "tokyo" in healthy())
        assert addresses(await ask(service)) == ["127.10.0.1", "127.10.0.2"]


async def test_with_every_edge_dead_all_are_answered() -> None:
    async with running() as (service, source):
        source.give(three_edges(9))
        await eventually(lambda: not service.prober.board.healthy)
        assert addresses(await ask(service)) == ["127.10.0.1", "127.10.0.2"]


async def test_two_replicas_give_the_same_answers_and_one_may_die() -> None:
    known, unknown = TOKYO, dns.edns.ECSOption.from_text("8.8.8.0/24")
    async with running(health={"enabled": False}) as (second, source_b):
        async with running(health={"enabled": False}) as (first, source_a):
            for source in (source_a, source_b):
                source.give(snapshot())
            for option in (known, unknown):
                query = dns.message.make_query(f"api.{ZONE}", "A", options=[option])
                answers = [
                    await dns.asyncquery.udp(query, "127.0.0.1", 2, s.server.addresses[0][1])
                    for s in (first, second)
                ]
                assert answers[0] == answers[1]
                assert addresses(answers[0])
        assert len(addresses(await ask(second))) == 2


async def get(service: DnsService, path: str) -> httpx.Response:
    assert service.exposition is not None
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://127.0.0.1:{service.exposition.port}{path}")


async def test_metrics_and_readiness() -> None:
    async with running() as (service, source):
        assert (await get(service, "/healthz")).status_code == 200
        assert (await get(service, "/readyz")).status_code == 503
        source.give(three_edges(9))
        assert (await get(service, "/readyz")).status_code == 200
        await eventually(lambda: not service.prober.board.healthy)
        await ask(service)
        await ask(service)
        await ask(service, "example.com")
        text = (await get(service, "/metrics")).text
        for line in (
            'tradewind_dns_queries_total{rcode="NOERROR",type="A"} 2.0',
            'tradewind_dns_queries_total{rcode="REFUSED",type="A"} 1.0',
            'tradewind_dns_cache_entries{cache="hot"} 1.0',
            'tradewind_dns_cache_limit{cache="hot"} 32768.0',
            'tradewind_dns_edge_healthy{edge="tokyo"} 0.0',
            "tradewind_dns_snapshot_revision 7.0",
            "tradewind_dns_control_plane_up 1.0",
            "tradewind_dns_failures_total 0.0",
        ):
            assert line in text.splitlines()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"hello\r\n\r\n", b"400"),
        (b"x" * 20_000, b""),
    ],
)
async def test_bad_requests_to_the_metrics_port(request_bytes: bytes, status: bytes) -> None:
    async with running() as (service, _):
        assert service.exposition is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", service.exposition.port)
        writer.write(request_bytes)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(2):
                assert (await reader.read()).removeprefix(b"HTTP/1.1 ").startswith(status)
        writer.close()


async def test_workers_share_the_port_follow_along_and_are_replaced() -> None:
    async with running(workers=2, health={"enabled": False}) as (service, source):
        source.give(three_edges(8080))

        async def everyone_says(expected: list[str]) -> int:
            """Ask from many ports, so that the kernel picks each process; returns how often."""
            for attempt in range(400):
                seen = []
                for _ in range(20):
                    try:
                        seen.append(addresses(await ask(service)))
                    except dns.exception.Timeout:
                        seen.append(["timeout"])
                if all(answer == expected for answer in seen):
                    return attempt
                await asyncio.sleep(0.05)
            raise AssertionError(f"some process still says {seen}")

        await eventually(lambda: len(service.workers.pids) == 1, 20)
        await eventually(lambda: bool(service.workers.figures.gauges), 20)
        await everyone_says(["127.10.0.1", "127.10.0.2"])
        source.give(three_edges(8080, revision=9))
        service._replace(service.answerer.view.with_health({"london"}))  # type: ignore[union-attr]
        await everyone_says(["127.10.0.3"])
        answered = lambda: service.workers.figures.queries.get("A NOERROR", 0)  # noqa: E731
        await eventually(lambda: answered() > 0)
        before = answered()
        [pid] = service.workers.pids
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: service.workers.restarts == 1)
        await eventually(lambda: service.workers.pids not in ([], [pid]), 20)
        await eventually(lambda: bool(service.workers.figures.gauges), 20)
        await everyone_says(["127.10.0.3"])
        assert answered() >= before  # counters do not fall


# --- As a process --------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from control_plane.geodns.service import run
from control_plane.geodns.settings import DnsSettings
from runtime import settings
run(settings.load(DnsSettings, Path(sys.argv[1]), {}))
"""


async def test_the_process_serves_the_last_good_snapshot_and_stops_when_told(
    tmp_path: Path,
) -> None:
    last_good.save(tmp_path / "last_good", snapshot())
    (tmp_path / "places.csv").write_text(
        "prefix,city,latitude,longitude\n198.18.1.0/24,Tokyo,35.68,139.69\n"
    )
    file = tmp_path / "dns.yaml"
    file.write_text(
        f"listen: ['127.0.0.1:0']\nlast_good: {tmp_path / 'last_good'}\n"
        f"prefix_table: {tmp_path / 'places.csv'}\nmetrics: null\nhealth: {{enabled: false}}\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(file), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            port = 0
            while not port:
                line = (await process.stderr.readline()).decode()
                assert line, "the process ended"
                if "serving DNS" in line:
                    port = int(line.partition("127.0.0.1:")[2].partition('"')[0])
            query = dns.message.make_query(f"api.{ZONE}", "A", options=[TOKYO])
            answer = await dns.asyncquery.udp(query, "127.0.0.1", 2, port)
            assert addresses(answer) == ["192.0.2.1", "192.0.2.2"]
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"control_plane": ["127.0.0.1:7400"]}, "no `identity`"),
        ({}, "no `identity`"),
    ],
)
def test_settings_that_name_no_source(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(TradewindError, match=told):
        open_source(settings(**changes), lambda _: None, SystemClock(), Random(1))


def test_a_missing_last_good_file_is_told(tmp_path: Path) -> None:
    source = open_source(
        settings(last_good=str(tmp_path / "none")), lambda _: None, SystemClock(), Random(1)
    )
    with pytest.raises(TradewindError, match="there is no snapshot"):
        source.start()


def test_every_mistake_in_the_settings_is_reported() -> None:
    with pytest.raises(InvalidDocument) as caught:
        settings(listen=["nowhere"], workers=0, answers={"udp_bytes": 100}, health={"x": 1})
    assert {problem.path for problem in caught.value.problems} == {
        "listen[0]",
        "workers",
        "health.x",
        "answers.udp_bytes",
    }

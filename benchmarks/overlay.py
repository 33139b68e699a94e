"""Tunnel <-> server over loopback, without HTTP: exchanges per second and their latency.

    python -m benchmarks.overlay [--in-flight 64] [--seconds 5] [--repeats 3] [--profile client]

One process is the client, one the server; each answers a body of `--body` bytes with ACCEPT,
`--frames` TOKENS and END. Mutual TLS and 1350-byte datagrams, as in production.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import multiprocessing.connection
import pstats
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import uvloop

from tests.overlay.certificates import Authority
from topology.overlay import client, server, udp
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.overlay.server import OverlayServer, ServerExchange
from topology.overlay.tunnel import Tunnel
from topology.overlay.udp import UdpCounters, UdpPort

_ACCEPT = Accept(0.0, 0.1, "singapore", "sim")
_END = End("stop", 20, 8, 0.1)


class TransportPort(UdpPort):
    """The same socket driven by the event loop's own datagram transport, to compare."""

    def __init__(self, loop: Any, sock: Any, on_batch: Any, on_refused: Any = None) -> None:
        self.counters = UdpCounters()
        self._socket = sock
        self.local_port = int(sock.getsockname()[1])
        self._waiting: list[Any] = []
        self._held: list[Any] = []
        self._deliver = on_batch
        self._running = loop
        self._transport: Any = None
        port = self

        class Protocol(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                port._transport = transport
                for datagrams, address in port._waiting:
                    port.send(datagrams, address)

            def datagram_received(self, data: bytes, addr: Any) -> None:
                if not port._held:
                    loop.call_soon(port._flush)
                port._held.append((data, addr))

        self._task = loop.create_task(loop.create_datagram_endpoint(Protocol, sock=sock))

    def _flush(self) -> None:
        held, self._held = self._held, []
        self.counters.reads += len(held)
        self.counters.datagrams_in += len(held)
        self._deliver(held)

    def read_now(self) -> None: ...

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def send(self, datagrams: list[bytes], address: Any) -> None:
        if self._transport is None:
            self._waiting.append((datagrams, address))
            return
        self.counters.writes += len(datagrams)
        self.counters.datagrams_out += len(datagrams)
        for datagram in datagrams:
            self._transport.sendto(datagram, address)


class PlainPort(UdpPort):
    """The raw socket without segmentation offload."""

    def __init__(self, loop: Any, sock: Any, on_batch: Any, on_refused: Any = None) -> None:
        super().__init__(loop, sock, on_batch, on_refused)
        self._segments = False
        udp._enable(sock, udp._UDP_GRO, 0)


PORTS = {"offload": UdpPort, "plain": PlainPort, "transport": TransportPort}


def _cpu_s() -> tuple[float, float]:
    """Seconds of processor time in Python and in the kernel."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_stime


def _rss_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


async def _serve(identity: Any, pipe: Any, frames: int) -> None:
    tokens = [Tokens(8 * i, tuple(range(8)), " eight tokens of text here") for i in range(frames)]

    def answer(exchange: ServerExchange) -> None:
        exchange.send(_ACCEPT)
        for frame in tokens:
            exchange.send(frame)
        exchange.send(_END)

    server = await OverlayServer.serve("127.0.0.1", 0, identity, answer)
    pipe.send(server.port)
    loop = asyncio.get_running_loop()
    while (command := await loop.run_in_executor(None, pipe.recv)) == "cpu":
        counters = server.udp.counters
        pipe.send((_cpu_s(), _rss_mib(), counters.datagrams_in, counters.reads,
                   counters.datagrams_out, counters.writes, counters.dropped))  # fmt: skip
    assert command == "stop"
    await server.close()


def _server(identity: Any, pipe: Any, other: Any, frames: int, profile: bool) -> None:
    other.close()  # so that this end sees the client's death
    _profiled(lambda: uvloop.run(_serve(identity, pipe, frames)), profile)


def _profiled(call: Any, profile: bool) -> Any:
    if not profile:
        return call()
    profiler = cProfile.Profile()
    result = profiler.runcall(call)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(38)
    return result


async def _load(tunnel: Tunnel, in_flight: int, seconds: float, body: bytes) -> list[float]:
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def worker() -> None:
        while (begin := time.perf_counter()) < end:
            request = Request("01JD9Z6Q3V5X7", "acme", "smollm2-135m", 60000, 3, 1, False)
            exchange = tunnel.open(request, body)
            while not isinstance(await exchange.next(), End):
                pass
            latencies.append(time.perf_counter() - begin)

    await asyncio.gather(*[worker() for _ in range(in_flight)])
    return latencies


async def _client(identity: Any, port: int, pipe: Any, options: argparse.Namespace) -> None:
    tunnel = Tunnel("singapore", f"127.0.0.1:{port}", identity)
    tunnel.start()
    while not tunnel.connected:
        await asyncio.sleep(0.01)
    body = b"b" * options.body
    await _load(tunnel, options.in_flight, 0.5, body)
    rows: list[dict[str, float]] = []
    for _ in range(options.repeats):
        pipe.send("cpu")
        server = pipe.recv()
        client, udp = _cpu_s(), tunnel._connection.port.counters  # type: ignore[union-attr]
        before = (udp.datagrams_in, udp.reads, udp.datagrams_out, udp.writes, udp.dropped)
        begin = time.perf_counter()
        latencies = await _load(tunnel, options.in_flight, options.seconds, body)
        took = time.perf_counter() - begin
        pipe.send("cpu")
        later = pipe.recv()
        n = len(latencies)
        ordered = sorted(latencies)
        spent = [*zip(client, _cpu_s(), strict=True), *zip(server[0], later[0], strict=True)]
        us = [(b - a) / n * 1e6 for a, b in spent]
        after = (udp.datagrams_in, udp.reads, udp.datagrams_out, udp.writes, udp.dropped)
        c = [b - a for a, b in zip(before, after, strict=True)]
        s = [b - a for a, b in zip(server[2:], later[2:], strict=True)]
        print(
            f"{n / took:8.0f}/s  p50 {statistics.median(ordered) * 1e3:6.2f} ms  "
            f"p99 {ordered[int(n * 0.99)] * 1e3:6.2f} ms  "
            f"us client {us[0]:.1f}+{us[1]:.1f}, server {us[2]:.1f}+{us[3]:.1f}  "
            f"datagrams/exchange out {c[2] / n:.2f} in {c[0] / n:.2f}  "
            f"per write {c[2] / max(1, c[3]):.1f}, {s[2] / max(1, s[3]):.1f}; "
            f"per read {c[0] / max(1, c[1]):.1f}, {s[0] / max(1, s[1]):.1f}  "
            f"dropped {c[4]}, {s[4]}  rss {_rss_mib():.0f}, {later[1]:.0f} MiB",
            flush=True,
        )
        rows.append({
            "exchanges_per_s": n / took,
            "p50_ms": statistics.median(ordered) * 1e3,
            "p99_ms": ordered[int(n * 0.99)] * 1e3,
            "client_us": us[0] + us[1],
            "server_us": us[2] + us[3],
        })  # fmt: skip
    if options.json is not None:
        options.json.write_text(json.dumps({"in_flight": options.in_flight, "runs": rows}))
    await tunnel.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--body", type=int, default=300)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--profile", choices=("client", "server"))
    parser.add_argument("--json", type=Path, help="write the figures of each repeat here")
    parser.add_argument("--socket", choices=PORTS, default="offload")
    options = parser.parse_args()
    client.UdpPort = server.UdpPort = PORTS[options.socket]  # type: ignore[misc]
    ca = Authority()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_server,
        args=(
            ca.issue("core", "singapore"),
            theirs,
            ours,
            options.frames,
            options.profile == "server",
        ),
    )
    process.start()
    edge = ca.issue("edge", "tokyo")
    port = ours.recv()
    _profiled(lambda: uvloop.run(_client(edge, port, ours, options)), options.profile == "client")
    ours.send("stop")
    process.join(10)
    if process.is_alive():
        process.kill()


if __name__ == "__main__":
    main()

"""What a relay costs: the same exchanges straight, through our relay, and through its alternatives.

    python -m benchmarks.relay [--in-flight 64] [--seconds 3] [--repeats 3] [--json FILE]

Three processes on loopback: the edge, the relay's core, the destination's core. A body of 300
bytes is answered with ACCEPT, one TOKENS and END, one at a time (`alone`) or many (`busy`); `bulk`
is four answers of 200 kB at a time.

  direct     edge == destination
  relayed    edge == destination, each datagram passed on by the relay (topology/overlay/relay.py)
  spliced    edge == relay == destination: the relay ends the edge's connection and sends each
             request on in one of its own, frame by frame: hop-by-hop mutual TLS
  packet     what a MASQUE proxy (RFC 9298) does to each datagram at the least, in our QUIC stack:
             take it out of a packet of the connection between edge and relay, or put it into one

CPU is user and system time of the relay's process, per exchange, and per datagram that passed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import uvloop

from tests.overlay.certificates import Authority
from tests.overlay.pair import Pair
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.overlay.server import OverlayServer, ServerExchange
from topology.overlay.tunnel import Tunnel

_ACCEPT = Accept(0.0, 0.1, "frankfurt", "sim")
_TOKENS = Tokens(0, tuple(range(8)), " eight tokens of text here")
_END = End("stop", 20, 8, 0.1)
_RUN_BYTES = 1200
_BULK_REPLY_BYTES = 200_000


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _request() -> Request:
    return Request("01JD9Z6Q3V5X7", "acme", "smollm2-135m", 60000, 3, 1, False)


def _answer(exchange: ServerExchange) -> None:
    exchange.send(_ACCEPT)
    if exchange.body == b"bulk":
        exchange.send(Tokens(0, (1,), "x" * _BULK_REPLY_BYTES))
    else:
        exchange.send(_TOKENS)
    exchange.send(_END)


async def _destination(identity: Any, pipe: Any) -> None:
    server = await OverlayServer.serve("127.0.0.1", 0, identity, _answer)
    pipe.send(server.port)
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await server.close()


class Splice:
    """The alternative: each request is sent on in a connection of the relay's own."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._tasks: set[asyncio.Task[None]] = set()

    def on_exchange(self, exchange: ServerExchange) -> None:
        task = asyncio.get_running_loop().create_task(self._carry(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, exchange: ServerExchange) -> None:
        onward = self._tunnel.open(exchange.request, exchange.body)
        frame: Accept | Tokens | End | None = None
        while not isinstance(frame, End):
            frame = await onward.next()
            exchange.send(frame)


async def _relay(identity: Any, pipe: Any, target: int) -> None:
    onward = Tunnel("frankfurt", f"127.0.0.1:{target}", identity)
    onward.start()
    server = await OverlayServer.serve(
        "127.0.0.1", 0, identity, Splice(onward).on_exchange,
        route=lambda region, turn: f"127.0.0.1:{target}",
    )  # fmt: skip
    pipe.send(server.port)
    loop = asyncio.get_running_loop()
    assert server.relay is not None
    while await loop.run_in_executor(None, pipe.recv) == "cpu":
        counters = server.relay.counters
        pipe.send((_cpu_s(), counters.forwarded + counters.returned, counters.dropped_rate))
    await onward.close()
    await server.close()


async def _load(tunnel: Tunnel, in_flight: int, seconds: float, body: bytes) -> list[float]:
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def worker() -> None:
        while (begin := time.perf_counter()) < end:
            exchange = tunnel.open(_request(), body)
            while not isinstance(await exchange.next(), End):
                pass
            latencies.append(time.perf_counter() - begin)

    await asyncio.gather(*[worker() for _ in range(in_flight)])
    return latencies


async def _measure(tunnel: Tunnel, pipe: Any, in_flight: int, seconds: float, body: bytes) -> Any:
    await _load(tunnel, in_flight, 0.3, body)
    pipe.send("cpu")
    cpu_s, passed, _ = pipe.recv()
    begin = time.perf_counter()
    took = await _load(tunnel, in_flight, seconds, body)
    wall_s = time.perf_counter() - begin
    pipe.send("cpu")
    cpu_later, passed_later, dropped = pipe.recv()
    n, passed, cpu_us = len(took), passed_later - passed, (cpu_later - cpu_s) * 1e6
    return {
        "exchanges_per_s": n / wall_s,
        "p50_ms": statistics.median(took) * 1e3,
        "relay_us_per_exchange": cpu_us / n,
        "datagrams_per_exchange": passed / n,
        "relay_us_per_datagram": cpu_us / passed if passed > n / 3 else None,
        "dropped": dropped,
    }


async def _edge(identity: Any, ports: dict[str, int], pipe: Any, options: Any) -> list[Any]:
    direct = Tunnel("frankfurt", f"127.0.0.1:{ports['destination']}", identity)
    hop = Tunnel("dubai", f"127.0.0.1:{ports['relay']}", identity)
    relayed = Tunnel("frankfurt", "via dubai", identity, via=hop)
    ways = {"direct": direct, "relayed": relayed, "spliced": hop}
    for tunnel in (direct, hop, relayed):
        tunnel.start()
    while not all(tunnel.connected for tunnel in ways.values()):
        await asyncio.sleep(0.01)
    rows = []
    for _ in range(options.repeats):
        for load, in_flight, body in (
            ("alone", 1, b"b" * 300),
            ("busy", options.in_flight, b"b" * 300),
            ("bulk", 4, b"bulk"),
        ):
            for way, tunnel in ways.items():
                row = await _measure(tunnel, pipe, in_flight, options.seconds, body)
                rows.append({"way": way, "load": load} | row)
    for tunnel in (relayed, hop, direct):
        await tunnel.close()
    return rows


def _packet_us(seconds: float) -> dict[str, float]:
    """CPU of one 1-RTT packet with 1,200 bytes of payload at one end, sent and received."""
    pair = Pair(window=2**30).connect()
    stream = pair.client.get_next_available_stream_id()
    sent_s = received_s = 0.0
    count, payload = 0, bytes(_RUN_BYTES * 8)
    end_at = time.perf_counter() + seconds
    while time.perf_counter() < end_at:
        begin = time.process_time()
        pair.client.send_stream_data(stream, payload)
        datagrams = pair.client.datagrams_to_send(pair.now)
        sent = time.process_time()
        for data, _ in datagrams:
            pair.server.receive_datagram(data, ("client", 1), pair.now)
        while pair.server.next_event() is not None:
            pass
        received_s += time.process_time() - sent
        sent_s += sent - begin
        count += len(datagrams)
        pair.run(0.05)  # acknowledgements, not counted
    return {"sent_us": sent_s / count * 1e6, "received_us": received_s / count * 1e6}


def _median(rows: list[Any], way: str, load: str, figure: str) -> float | None:
    found = [r[figure] for r in rows if r["way"] == way and r["load"] == load and r[figure]]
    return statistics.median(found) if found else None


def _print(rows: list[Any], packet: dict[str, float]) -> dict[str, Any]:
    figures: dict[str, Any] = {"packet": packet}
    for load in ("alone", "busy", "bulk"):
        for way in ("direct", "relayed", "spliced"):
            names = [name for name in rows[0] if name not in ("way", "load", "dropped")]
            row = {name: _median(rows, way, load, name) for name in names}
            figures.setdefault(load, {})[way] = row
            text = "  ".join(f"{name} {value:9.2f}" for name, value in row.items() if value)
            print(f"{load:6} {way:8} {text}", flush=True)
    print("packet " + "  ".join(f"{name} {value:.1f}" for name, value in packet.items()))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    ca, fork = Authority(), multiprocessing.get_context("fork")
    ports, pipes, processes = {}, {}, []
    for name, identity, run in (
        ("destination", ca.issue("core", "frankfurt"), _destination),
        ("relay", ca.issue("core", "dubai"), _relay),
    ):
        ours, theirs = multiprocessing.Pipe()
        more = (ports["destination"],) if name == "relay" else ()
        process = fork.Process(target=_process, args=(run, identity, theirs, *more), daemon=True)
        process.start()
        processes.append(process)
        pipes[name], ports[name] = ours, ours.recv()
    rows = uvloop.run(_edge(ca.issue("edge", "tokyo"), ports, pipes["relay"], options))
    for pipe in pipes.values():
        pipe.send("stop")
    for process in processes:
        process.join(10)
    figures = _print(rows, _packet_us(min(options.seconds, 2.0)))
    if options.json is not None:
        options.json.write_text(json.dumps({"figures": figures, "runs": rows}))


def _process(run: Any, *arguments: Any) -> None:
    uvloop.run(run(*arguments))


if __name__ == "__main__":
    main()

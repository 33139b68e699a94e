"""The WAN emulator: what one core carries, and how exact its delays are.

    python -m benchmarks.wan [--seconds 2] [--repeats 3] [--json FILE]

The emulator is a process of its own, as in the lab; one process sends through it to one that
receives. `trains` are 1350-byte datagrams that come 16 to a system call, as a bulk transfer's do;
`single` ones of 200 bytes come one by one from 32 sockets, as tokens of many streams do. The rate
is raised until a thousandth is lost; `error_ms` is arrival less sending less the link's latency,
so it has the scheduling of all three processes in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
import yaml

from benchmarks.harness import Process, cpu_s, free_port, say
from lab.wan import WanControl
from topology.overlay.udp import UdpPort

LATENCY_MS = 50.0
KINDS = {"trains": (1350, 16, 1), "single": (200, 1, 32)}  # bytes, per call, sockets
RATES = (5_000, 10_000, 20_000, 40_000, 60_000, 100_000, 150_000, 250_000)
LOST_MAX = 0.001
_STAMP = struct.Struct("d")


async def _receive(pipe: Any) -> None:
    """Counts what comes and how late; answers a line for each `take`."""
    loop = asyncio.get_running_loop()
    late: list[float] = []

    def take(batch: Any) -> None:
        now = time.monotonic()
        late.extend(now - _STAMP.unpack_from(data)[0] for data, _ in batch)

    port = UdpPort.bind(loop, socket.AF_INET, ("127.0.0.1", 0), take)
    pipe.send(port.local_port)
    while await loop.run_in_executor(None, pipe.recv) == "take":
        pipe.send(list(late))
        late.clear()
    port.close()


def receiver(pipe: Any) -> None:
    uvloop.run(_receive(pipe))


def send(address: tuple[str, int], kind: str, per_s: int, seconds: float) -> int:
    """Send at a steady rate, a millisecond's worth at a time; how many were sent."""
    size, per_call, sockets = KINDS[kind]
    loop = asyncio.new_event_loop()
    ports = [UdpPort.connect(loop, socket.AF_INET, address, len, list) for _ in range(sockets)]
    rest, sent, calls = bytes(size - _STAMP.size), 0, 0
    begun = time.monotonic()
    while (now := time.monotonic()) < begun + seconds:
        due = int((now - begun) * per_s)
        while sent + per_call <= due:
            stamp = _STAMP.pack(time.monotonic())
            ports[calls % sockets].send([stamp + rest] * per_call, None)
            sent, calls = sent + per_call, calls + 1
        time.sleep(0.0005)
    for port in ports:
        port.close()
    loop.close()
    return sent


def measure(
    wan: Process, link: tuple[str, int], pipe: Any, kind: str, per_s: int, seconds: float
) -> dict[str, float]:
    used, begun = cpu_s(wan.pid), time.monotonic()
    sent = send(link, kind, per_s, seconds)
    took = time.monotonic() - begun
    time.sleep(LATENCY_MS / 1000 + 0.1)
    spent = cpu_s(wan.pid) - used
    pipe.send("take")
    error_ms = sorted((late * 1000) - LATENCY_MS for late in pipe.recv())
    got = len(error_ms)
    return {
        "packets_per_s": got / took,
        "mb_per_s": got * KINDS[kind][0] / took / 1e6,
        "lost": 1 - got / sent,
        "error_p50_ms": statistics.median(error_ms),
        "error_p99_ms": error_ms[int(got * 0.99)],
        "cpu_us": spent / sent * 1e6,
        "cpu_share": spent / took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--json", type=Path, help="write the figures of each rate here")
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    receiving = multiprocessing.get_context("fork").Process(target=receiver, args=(theirs,))
    receiving.start()
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        listen = free_port()
        links = [{"name": "l", "listen": f"127.0.0.1:{listen}", "rtt_ms": 2 * LATENCY_MS,
                  "target": f"127.0.0.1:{ours.recv()}"}]  # fmt: skip
        settings = folder / "wan.yaml"
        settings.write_text(yaml.safe_dump({"links": links, "control": str(folder / "sock")}))
        command = [sys.executable, "-m", "lab.wan", "--settings", str(settings)]
        with Process("wan", command) as wan:
            wan.wait_until(lambda: (folder / "sock").exists())
            for kind in options.kind or KINDS:
                found[kind] = ladder(wan, ("127.0.0.1", listen), ours, kind, options)
            say(str(asyncio.run(WanControl(folder / "sock").links())[0].out.counters))
    ours.send("stop")
    receiving.join(5)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2))


def ladder(
    wan: Process, link: tuple[str, int], pipe: Any, kind: str, options: argparse.Namespace
) -> list[dict[str, float]]:
    """The best of the repeats at each rate, up to the first that loses too much in all."""
    rows: list[dict[str, float]] = []
    for per_s in RATES:
        tries = [measure(wan, link, pipe, kind, per_s, options.seconds)
                 for _ in range(options.repeats)]  # fmt: skip
        row = min(tries, key=lambda row: (row["lost"], row["error_p99_ms"]))
        say(f"{kind} {per_s}/s: " + ", ".join(f"{name} {row[name]:.3f}" for name in row))
        if row["lost"] > LOST_MAX:
            break
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()

"""Streaming: what a token costs an edge and a core, against routers, and how late it is.

    python -m benchmarks.streams [--streams 500] [--rate 50] [--seconds 5] [--runs 3]
                                 [--json FILE] [--against CHECKOUT]

Ours is clients -> edge (one worker) -> QUIC with mutual TLS -> core. The core is the real one
with a *simulated* engine, which makes one token for each stream at a fixed pace
(benchmarks/stream_core.py). The peers are the same clients -> router -> plain HTTP -> a back end
that streams at the same pace from plain sockets. All share the machine's cores.

A token carries the moment at which the engine had it. Added latency is its age when the client's
socket was read: so it holds the core's work for all streams of the step, the network, the edge's,
and the client's own. `--against` measures another checkout as one more side, `before`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.edge_process import Site, question
from benchmarks.forward import PEERS
from benchmarks.harness import (
    BENCH,
    Process,
    Report,
    Sample,
    Unavailable,
    arguments,
    free_port,
    run_generator,
    say,
    take_turns,
)

CONTEXT_TOKENS = 8192
BODY = question(stream=True, max_tokens=4096)  # more than any turn takes
# What the report compares: scenario, unit, and the note that it is about.
COMPARED = (
    ("CPU", "us/token", "edge_us"),
    ("latency p50", "ms", "p50_ms"),
    ("latency p99", "ms", "p99_ms"),
    ("memory", "KiB/stream", "edge_kib"),
)


class Side:
    """An edge or router under test, and what is behind it."""

    def __init__(self, edge: Process, port: int, behind: Process) -> None:
        self.edge = edge
        self.port = port
        self.behind = behind
        self.idle_mib = {"edge": edge.rss_mib(), "behind": behind.rss_mib()}

    def turn(self, options: Any, body: Path) -> Sample:
        command = [
            sys.executable, "-m", "benchmarks.stream_client", str(self.port), str(body),
            "--streams", str(options.streams), "--seconds", str(options.seconds),
            "--watch", f"edge={self.edge.pid}", f"behind={self.behind.pid}",
        ]  # fmt: skip
        found = json.loads(run_generator(command).out.splitlines()[-1])
        notes = self._notes(found, options.streams)
        say("    " + ", ".join(f"{name} {value:.2f}" for name, value in notes.items()))
        wall_s, cpu_s = found["wall_s"], found["cpu_s"]
        return Sample(
            notes["edge_us"], server_cores=(cpu_s["edge"] + cpu_s["behind"]) / wall_s,
            generator_cores=cpu_s["client"] / wall_s, server_limit=2.0, notes=notes,
        )  # fmt: skip

    def _notes(self, found: dict[str, Any], streams: int) -> dict[str, float]:
        tokens, cpu_s = found["tokens"], found["cpu_s"]
        grown = {name: found["rss_mib"][name] - idle for name, idle in self.idle_mib.items()}
        return {
            "edge_us": cpu_s["edge"] / tokens * 1e6,
            "behind_us": cpu_s["behind"] / tokens * 1e6,
            "client_us": cpu_s["client"] / tokens * 1e6,
            "tokens_per_s": tokens / found["wall_s"],
            "tokens_per_event": tokens / found["events"],
            "p50_ms": found["p50_ms"],
            "p99_ms": found["p99_ms"],
            "worst_ms": found["worst_ms"],
            "edge_kib": max(0.0, grown["edge"]) * 1024 / streams,
            "behind_kib": max(0.0, grown["behind"]) * 1024 / streams,
            "streams_ended": found["ended"],
        }


def start_ours(stack: ExitStack, folder: Path, options: Any, **site: Any) -> Side:
    folder.mkdir()
    ours = Site(folder, cache_ttl_s=0, context_tokens=CONTEXT_TOKENS, **site)
    slots = options.streams + 16
    core = ours.start_core(
        "benchmarks.stream_core",
        sim={"step_ms": 1000 / options.rate, "answer_tokens_min": 1, "answer_tokens_max": 1},
        scheduling={
            "slots": slots, "waiting": slots, "context_tokens": CONTEXT_TOKENS,
            "max_output_tokens": 4096, "step_tokens": 16 * slots,
        },
    )  # fmt: skip
    stack.enter_context(core)
    return Side(stack.enter_context(ours.start_edge()), ours.http_port, core)


def start_backend(stack: ExitStack, folder: Path, options: Any) -> tuple[Process, int]:
    port, file = free_port(), folder / "answer.json"
    file.write_bytes(b'{"object": "chat.completion", "choices": []}')
    command = [sys.executable, "-m", "benchmarks.stream_backend"]
    backend = Process("stream-backend", [*command, str(port), str(1000 / options.rate), str(file)])
    backend.wait_for_port(port)
    return stack.enter_context(backend), port


def start_peers(stack: ExitStack, report: Report, folder: Path, options: Any) -> dict[str, Side]:
    backend, backend_port = start_backend(stack, folder, options)
    sides = {}
    for name, start in PEERS.items():
        try:
            process, port = start(backend_port)
        except Unavailable as why:
            report.note(f"{name} is missing: {why}")
            continue
        sides[name] = Side(stack.enter_context(process), port, backend)
    return sides


def compare(report: Report, taken: dict[str, list[Sample]], streams: int) -> None:
    """The same turns, one table for each figure."""
    for name, unit, note in COMPARED:
        samples = {
            side: [
                Sample(s.notes[note], s.server_cores, s.generator_cores, 2.0, 1.0, s.other_cores,
                       s.notes) for s in turns
            ]
            for side, turns in taken.items()
        }  # fmt: skip
        report.add(f"{name}, {streams} streams", samples, unit=unit)


def main() -> None:
    parser = arguments(__doc__ or "", runs=3, seconds=5.0)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second and stream")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version of ours")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    options = parser.parse_args()
    report = Report("streams", unit="us/token", lower_is_better=True)
    report.note("the engine is simulated: it makes tokens at a fixed pace and runs no model")
    with ExitStack() as stack:
        BENCH.mkdir(exist_ok=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=BENCH)))
        body = folder / "body.json"
        body.write_bytes(BODY)
        sides = {"ours": start_ours(stack, folder / "ours", options)}
        if options.against is not None:
            other = {"code": options.against.resolve(), "name": "before-"}
            sides["before"] = start_ours(stack, folder / "before", options, **other)
        if not options.no_peers:
            sides |= start_peers(stack, report, folder, options)
        turns = {name: partial(side.turn, options, body) for name, side in sides.items()}
        compare(report, take_turns(turns, options.runs), options.streams)
        report.finish(options.json)


if __name__ == "__main__":
    main()

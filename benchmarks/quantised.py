"""Weights of eight bits against bfloat16: the same core, the same requests, in turn.

    python -m benchmarks.quantised [--json FILE] [--runs 5] [--threads 2]

Through the whole core service, as `benchmarks.engine` has it: tokens a second while 1, 8 and 32
sequences are decoded, and memory of the engine's process that is its own (Pss). About 3 minutes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.engine import Ours, Work, equal
from benchmarks.harness import OURS, Report, Sample, arguments, take_turns
from region_core.weights.bundle import Dtype

SLOTS = 32
SIDES: dict[str, Dtype] = {OURS: "int8", "bfloat16": "bfloat16"}
SCENARIOS: dict[str, Work] = {"alone": equal(1, 64), "8": equal(8, 48), "32": equal(32, 32)}


def own_mib(pid: int | None) -> float:
    """Memory that a process has to itself, and its part of what it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"no Pss for process {pid}")


def run(side: Ours, work: Work) -> Sample:
    return side.run(work)


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0], runs=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    loop = asyncio.new_event_loop()
    report = Report("quantised", unit="tokens/s")
    sides = {name: Ours(given.threads, loop, dtype, SLOTS) for name, dtype in SIDES.items()}
    for name, work in SCENARIOS.items():
        turns: dict[str, Callable[[], Sample]] = {
            side: partial(run, engine, work) for side, engine in sides.items()
        }
        report.add(f"{name} sequences", take_turns(turns, given.runs))
    memory = {side: [Sample(own_mib(engine.engine.pid))] for side, engine in sides.items()}
    report.add("memory of the engine", memory, unit="MiB", lower_is_better=True)
    report.note(f"{given.threads} threads, greedy; `ours` is int8")
    report.finish(given.json)
    for engine in sides.values():
        engine.close()
    loop.close()


if __name__ == "__main__":
    main()

"""CPU time of the machine and of each process of the lab: a storm shows what it claims to show only
while there is CPU to spare."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage(Struct, frozen=True):
    """Busy CPU seconds so far."""

    at_s: float
    machine_s: float
    processes_s: dict[str, float]


class Spent(Struct, frozen=True):
    """Between two moments. `busy_share` is of all CPUs of the machine."""

    busy_share: float
    cpus: int
    processes: dict[str, float]  # CPUs that each used on average


def now(pids: Mapping[str, int]) -> Usage:
    return Usage(
        time.monotonic(), _machine_s(), {name: _process_s(pid) for name, pid in pids.items()}
    )


def between(before: Usage, after: Usage) -> Spent:
    took_s = max(1e-9, after.at_s - before.at_s)
    cpus = len(os.sched_getaffinity(0))
    processes = {
        name: round((used - before.processes_s[name]) / took_s, 3)
        for name, used in sorted(after.processes_s.items())
        if name in before.processes_s
    }
    busy = (after.machine_s - before.machine_s) / took_s / cpus
    return Spent(round(busy, 3), cpus, processes)


def _machine_s() -> float:
    with contextlib.suppress(OSError, ValueError):
        line = Path("/proc/stat").read_text().splitlines()[0]
        ticks = [int(word) for word in line.split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_S  # without idle and iowait
    return 0.0


def _process_s(pid: int) -> float:
    """Of a process and those it started."""
    total, todo = 0, [pid]
    while todo:
        current = todo.pop()
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{current}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
            for task in Path(f"/proc/{current}/task").glob("*/children"):
                todo += [int(child) for child in task.read_text().split()]
    return total / _TICKS_PER_S

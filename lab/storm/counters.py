"""What edges and cores count themselves, read from their /metrics once a second."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from lab.bring_up import http_get
from lab.world import CORE_HTTP_PORT, EDGE_PORT, World

_LINE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
Labels = tuple[tuple[str, str], ...]


class Reading(Struct, frozen=True):
    """One process's metrics at a moment of the machine's monotonic clock."""

    at_s: float
    values: dict[tuple[str, Labels], float]

    def sum(self, name: str, **labels: str) -> float:
        """All samples of a metric that have these labels, together."""
        wanted = set(labels.items())
        return sum(
            value
            for (found, has), value in self.values.items()
            if found == name and wanted <= set(has)
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """The samples of a metric by the value of one label."""
        out: dict[str, float] = {}
        for (found, has), value in self.values.items():
            if found == name:
                key = dict(has).get(label, "")
                out[key] = out.get(key, 0.0) + value
        return out


def parse(text: str, at_s: float) -> Reading:
    """Prometheus' text format; histogram buckets are left out."""
    values = {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found and not found.group(1).endswith("_bucket"):
            labels = tuple(sorted(_LABEL.findall(found.group(2) or "")))
            with contextlib.suppress(ValueError):
                values[(found.group(1), labels)] = float(found.group(3))
    return Reading(at_s, values)


class Series:
    """Readings of several processes over time. One that is dead has none for that time."""

    def __init__(self, places: Mapping[str, tuple[str, int]]) -> None:
        self._places = dict(places)
        self.readings: dict[str, list[Reading]] = {name: [] for name in places}

    async def read(self) -> None:
        """Read all, at once."""
        await asyncio.gather(*(self._one(name) for name in self._places))

    async def _one(self, name: str) -> None:
        host, port = self._places[name]
        status, body = await http_get(host, port, "/metrics")
        if status == 200:
            reading = parse(body.decode(), time.monotonic())
            self.readings[name].append(reading)

    def last(self, name: str) -> Reading | None:
        found = self.readings[name]
        return found[-1] if found else None

    def names(self, kind: str) -> list[str]:
        """Processes of a kind: `edge` or `core`."""
        return [name for name in self._places if name.startswith(kind + "-")]

    def grown(
        self, kind: str, count: Callable[[Reading], float], from_s: float, to_s: float
    ) -> float:
        """By how much a counter of all processes of a kind grew between two moments."""
        return sum(
            _at(self.readings[name], count, to_s) - _at(self.readings[name], count, from_s)
            for name in self.names(kind)
        )

    def over_time(
        self, kind: str, count: Callable[[Reading], float], edges_s: Iterable[float]
    ) -> list[float]:
        """The counter of all processes together at each of these moments."""
        return [
            sum(_at(self.readings[name], count, at_s) for name in self.names(kind))
            for at_s in edges_s
        ]


def _at(readings: list[Reading], count: Callable[[Reading], float], at_s: float) -> float:
    """A counter at a moment, between two readings in proportion; at the ends, the nearest."""
    before: Reading | None = None
    for reading in readings:
        if reading.at_s >= at_s:
            if before is None:
                return count(reading)
            part = (at_s - before.at_s) / (reading.at_s - before.at_s)
            return count(before) + part * (count(reading) - count(before))
        before = reading
    return count(before) if before is not None else 0.0


def places(world: World) -> dict[str, tuple[str, int]]:
    """Where the edges and cores of a world show their metrics."""
    cores = {f"core-{r.name}": (r.address, CORE_HTTP_PORT) for r in world.regions}
    return cores | {f"edge-{e.name}": (e.address, EDGE_PORT) for e in world.edges}


def arrivals(reading: Reading) -> float:
    """Requests that reached a core: taken on or not, or answered from what it had kept."""
    kept = reading.sum("tradewind_core_answers_hits_total")
    return reading.sum("tradewind_core_accepted_total") + kept + refusals(reading)


def refusals(reading: Reading) -> float:
    """Requests that a core turned away before it took them on, as it counts them itself.

    `given_up` and `displaced` had been taken on first.
    """
    causes = reading.by("tradewind_core_refused_total", "cause")
    return sum(n for cause, n in causes.items() if cause not in ("given_up", "displaced"))


def finished(reading: Reading) -> float:
    """Whole answers that a core made, whether anybody waited for them or not."""
    return reading.sum("tradewind_core_finished_total")


def accepted(reading: Reading) -> float:
    """Requests that a core took on."""
    return reading.sum("tradewind_core_accepted_total")


def waiting(reading: Reading) -> float:
    """Requests that wait in a core now."""
    return reading.sum("tradewind_core_waiting")

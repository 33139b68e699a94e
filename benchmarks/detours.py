"""Detours: does the overlay find the way round a bad path, and leave a good one alone?

    python -m benchmarks.detours [--json FILE] [--runs 20]

Real edges, cores and relays at the lab's addresses, the WAN emulator between them, the simulated
engine. Every edge asks for answers from every region, on two maps: round trips as the public
internet has them where its straight ways are bad (Dubai-London 270 ms, through Frankfurt 149;
Tokyo-Dubai 247, through Singapore 157; Istanbul-Singapore 270, through Dubai 203), and a cloud's
published ones. On the first map all is done twice: with the overlay as it comes, and with
`relays_per_region: 0`.

A figure is the median time to the first token, from the moment the client sends: connecting to the
edge, the way to the region and back, and one step of the engine (20 ms). `path` is what the edge's
headers say. Nothing is claimed for the second map but that its ways are straight.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.failover_maps import Geography, internet, published
from benchmarks.failover_streams import TokenStream, ask, question
from benchmarks.failover_world import World
from benchmarks.harness import BENCH, Report, Unavailable, arguments, say

TOKENS = 4
SETTLE_S = 12.0  # paths are measured, and a new one must have lived for a while, before it is taken
PAUSE_S = 0.05


@dataclass
class Pair:
    """One edge and one region, and what answers took."""

    edge: str
    region: str
    paths: Counter[str] = field(default_factory=Counter)
    first_ms: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def path(self) -> str:
        """The one that most requests took."""
        return self.paths.most_common(1)[0][0] if self.paths else ""


def every_pair(geography: Geography, policy: dict[str, Any]) -> Geography:
    """The map with a tenant for each region, whom this region alone may serve."""
    routes = {f"to-{region.name}": (region.name,) for region in geography.regions}
    return replace(geography, routes=routes, policy=policy)


async def measure(geography: Geography, runs: int) -> list[Pair]:
    """Start the world and ask from each edge for each region, `runs` times, in turn."""
    pairs = [Pair(e.name, r.name) for e in geography.edges for r in geography.regions]
    with tempfile.TemporaryDirectory(prefix="detours-", dir=BENCH) as folder:
        world = World(Path(folder), geography)
        try:
            await world.start()
            await asyncio.sleep(SETTLE_S)
            edges = [edge.name for edge in geography.edges]
            for number in range(runs):
                turns = [[p for p in pairs if p.edge == edge] for edge in edges]
                await asyncio.gather(*(_ask_all(world, turn, number) for turn in turns))
        finally:
            world.close()
    return pairs


async def _ask_all(world: World, pairs: list[Pair], number: int) -> None:
    address = {edge.name: edge.address for edge in world.geography.edges}
    for pair in pairs:
        name = f"detours-{pair.edge}-{pair.region}-{number}"
        stream = TokenStream(name, pair.edge, question(name, TOKENS), time.monotonic())
        await ask(stream, address[pair.edge], world.keys[f"to-{pair.region}"])
        told = stream.told()
        if not told.whole:
            pair.failed += 1
            say(f"  failed: {name}: {told.error}")
            continue
        pair.paths[stream.path] += 1
        pair.first_ms.append((told.pieces[0][0] - stream.begun) * 1000)
        await asyncio.sleep(PAUSE_S)


def figures(geography: Geography, pair: Pair, straight: Pair | None) -> dict[str, Any]:
    """What the JSON says of a pair. The round trips are the emulator's."""
    direct_ms = geography.rtt_of(pair.edge, pair.region, "direct")
    found: dict[str, Any] = {
        "path": pair.path,
        "paths": dict(pair.paths),
        "rtt_direct_ms": direct_ms,
        "rtt_path_ms": geography.rtt_of(pair.edge, pair.region, pair.path or "direct"),
        "first_token_ms": _median(pair),
        "failed": pair.failed,
    }
    if straight is not None:
        found["first_token_straight_ms"] = _median(straight)
        found["failed"] += straight.failed
    return found


def _median(pair: Pair) -> float | None:
    return round(statistics.median(pair.first_ms), 1) if pair.first_ms else None


def show(name: str, all_figures: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"detours: {name}", title_justify="left")
    table.add_column("from, to")
    for heading in ("path in use", "rtt straight", "rtt of path", "first token, ms",
                    "straight alone", "failed"):  # fmt: skip
        table.add_column(heading, justify="right")
    for pair, of in all_figures.items():
        cells = (
            of["path"], of["rtt_direct_ms"], of["rtt_path_ms"], of["first_token_ms"],
            of.get("first_token_straight_ms"), of["failed"],
        )  # fmt: skip
        table.add_row(pair, *("" if cell is None else str(cell) for cell in cells))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


async def run(options: argparse.Namespace, report: Report) -> None:
    straight_alone = {"paths": {"relays_per_region": 0}}
    for make in (internet, published):
        geography = every_pair(make(), {})
        say(f"the {geography.name} map, with the overlay as it comes")
        pairs = await measure(geography, options.runs)
        straight: dict[tuple[str, str], Pair] = {}
        if make is internet:
            say(f"the {geography.name} map, straight ways alone")
            measured = await measure(every_pair(make(), straight_alone), options.runs)
            straight = {(pair.edge, pair.region): pair for pair in measured}
        found = {
            f"{p.edge}-{p.region}": figures(geography, p, straight.get((p.edge, p.region)))
            for p in pairs
        }
        report.figures[geography.name] = found
        show(geography.name, found)


def main() -> None:
    parser = arguments(__doc__ or "", runs=20)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    options = parser.parse_args()
    BENCH.mkdir(exist_ok=True)
    report = Report("detours", unit="ms", lower_is_better=True)
    try:
        uvloop.run(run(options, report))
    except Unavailable as why:
        sys.exit(f"detours: {why}")
    report.finish(options.json)


if __name__ == "__main__":
    main()

"""Failover: how long a stream stands still when its path or its region dies, and what it loses.

    python -m benchmarks.failover [--json FILE] [--runs 20] [--faults link_cut,region_sigkill]
        [--streams 6] [--engine sim|torch] [--flap-s 300]

Real edges, cores and relays at the lab's addresses, with a WAN emulator between them; the engine is
simulated unless `--engine torch` says otherwise: 50 tokens a second for each stream, replay at
20,000 tokens a second. Each edge has `--streams` streams under way all the time, answers of 100 to
400 tokens, half greedy, half seeded, each prompt another one. Faults of a path or region strike the
three edges and regions in turn. One world has a cloud's published round-trip times; the relay is
killed in a second one, where the way through it is the best one, as on the public internet.

A stream is *hit* when it has begun to give tokens and the path (or region) that it is on is the
faulty one. For it, by its client's clock (`failover_figures.py` has the details):

- `gap_ms`: from the fault, or the order to make it, to the first byte that another path or region
  delivered. It counts as the other way's what comes after the token at which, by the edge's log,
  that way went on; where the log says nothing, what comes after the longest silence.
  Streams that stay on a lossy way have no gap; their silences count.
- `bound_ms`: two round trips of the way that went on, by the emulator's figures, + 300 ms, + 1 s
  where the region is only stopped or its engine hangs and so does not go silent at once.
- `silence_ms`: the longest time without a byte.

`failed`: all requests that were under way or begun from the fault on until the next one, and did
not end with a whole answer. `tokens_wrong`: those whose text, finish reason or usage is not that of
an undisturbed run of the same request (`--engine sim`: in a core that takes no time; else in the
first region, afterwards).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.failover_faults import FAULTS, Fault, Target
from benchmarks.failover_figures import Gap, Told, gap_by_position, gap_by_silence, is_wrong, spread
from benchmarks.failover_flapping import Flapped, flap
from benchmarks.failover_maps import Geography, internet, published
from benchmarks.failover_streams import Load, TokenStream
from benchmarks.failover_world import Move, World, encode, post
from benchmarks.harness import BENCH, Report, Unavailable, arguments, say
from lab.world import CORE_HTTP_PORT
from topology.policy import PathPolicy

WARM_UP_S = 1.5
HIT_S = 12.0  # how long to wait for streams on the path that is to fail
SEEN_S = 0.2  # what came last before the fault ended has reached the client
MEND_S = 30.0  # for all paths to be up again
TOKEN_BYTES = 3  # of the simulated engine's text


@dataclass
class Hit:
    """A stream that a fault hit, and where new requests went meanwhile."""

    stream: TokenStream
    at: float
    until: float
    run: int
    target: Target
    way: str = ""  # that went on: "<region> <path>"
    bound_ms: float = 0.0
    gap: Gap | None = None
    stayed: bool = False  # on the way that it was on, as far as can be told


@dataclass
class Outcome:
    """All of one fault's runs."""

    fault: Fault
    runs: int = 0
    empty_runs: int = 0  # no stream was on the path
    hits: list[Hit] = field(default_factory=list)
    streams: list[TokenStream] = field(default_factory=list)  # all, hit or not
    mend_s: list[float] = field(default_factory=list)
    told: dict[str, Told] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Trial:
    """One world under load; one fault after another."""

    def __init__(self, world: World, load: Load, runs: int) -> None:
        self._world = world
        self._load = load
        self._runs = runs
        self._references: dict[str, Told] = {}
        self._begun: list[TokenStream] = []

    async def run(self, fault: Fault) -> Outcome:
        outcome = Outcome(fault)
        first = len(self._load.finished)
        for number in range(self._runs):
            await self._once(outcome, fault.targets[number % len(fault.targets)], number)
        hit = [h.stream for h in outcome.hits]
        while any(not stream.ended for stream in hit):
            await asyncio.sleep(0.05)
        for h in outcome.hits:
            self._measure(h, fault)
        outcome.streams = self._load.finished[first:]
        await self._judge(outcome)
        return outcome

    async def _once(self, outcome: Outcome, target: Target, number: int) -> None:
        world, fault = self._world, outcome.fault
        await self._until_on(target)
        streams = self._load.on(target.hits)
        at = await fault.begin(world, target)
        for stream in streams:
            stream.struck = at
        await asyncio.sleep(max(0.0, at + fault.hold_s - time.monotonic()))
        ended = await fault.end(world, target)
        mend_s = -1.0
        with suppress(Unavailable):
            mend_s = await world.until("paths", self._all_up, MEND_S)
        outcome.runs += 1
        outcome.empty_runs += not streams
        outcome.mend_s.append(mend_s)
        hits = [Hit(s, at, ended + 1.0, number, target) for s in streams if not _had_ended(s, at)]
        outcome.hits += hits
        await asyncio.sleep(SEEN_S)
        for hit in hits:
            self._measure(hit, fault)
        self._say(outcome, target, number, hits)

    async def _until_on(self, target: Target) -> None:
        """Until some streams are on the path or region that is to fail."""
        end = time.monotonic() + HIT_S
        wanted = max(1, round(target.share * self._load.at_a_time))
        while len(self._load.on(target.hits)) < wanted and time.monotonic() < end:
            await asyncio.sleep(0.02)

    async def _all_up(self) -> bool:
        edges = self._world.geography.edges
        return all([await self._world.is_up(edge.name) for edge in edges])

    def _measure(self, hit: Hit, fault: Fault) -> None:
        """Gap and bound, as far as they can be told by now."""
        geography, stream = self._world.geography, hit.stream
        pieces = stream.told().pieces
        hit.gap = gap_by_silence(pieces, hit.at, hit.until)
        region, path, before = self._went_on(hit)
        hit.stayed = not region
        hit.way = f"{region} {path}" if region else ""
        if before is not None and hit.gap is not None:
            exact = gap_by_position(pieces, hit.at, before * TOKEN_BYTES)
            if exact is not None:
                hit.gap = Gap(exact, hit.gap.silence_ms)
        if region:
            rtt = geography.rtt_of(stream.edge, region, path)
            hit.bound_ms = 2 * rtt + 300 + fault.grace_ms

    def _went_on(self, hit: Hit) -> tuple[str, str, int | None]:
        """Region, path and token at which the hit stream went on another way, by the edge's log:
        "" where it stayed. An edge that notes no moves: by where its first new request went."""
        moves = self._world.moves(hit.stream.edge)
        for move in moves.get(hit.stream.name, ()):
            return move.region, move.path, move.position
        if moves:
            return "", "", None
        load = self._load
        new = [s for s in (*load.active, *load.finished) if s.edge == hit.stream.edge and s.region]
        new = [s for s in new if hit.at < s.begun < hit.until and not hit.target.hits(s)]
        first = min(new, key=lambda s: s.begun, default=None)
        return (first.region, first.path, None) if first else ("", "", None)

    def _say(self, outcome: Outcome, target: Target, number: int, hits: list[Hit]) -> None:
        gaps = [h.gap.gap_ms for h in hits if h.gap is not None and not h.stayed]
        bound = max((h.bound_ms for h in hits), default=0.0)
        ways = ", ".join(sorted({h.way for h in hits if h.way})) or "no other way"
        figures = f"gap {min(gaps):.0f} to {max(gaps):.0f} ms" if gaps else "no gap"
        say(
            f"  {outcome.fault.name} {number + 1}/{self._runs} {target.name}: {len(hits)} streams, "
            f"{figures} (bound {bound:.0f}), on by {ways}; "
            f"paths up after {outcome.mend_s[-1]:.1f} s"
        )

    async def while_flapping(self, seconds: float, seed: int) -> tuple[Flapped, Outcome]:
        """What paths did, and all requests that ended meanwhile."""
        first = len(self._load.finished)
        flapped = await flap(self._world, seconds, seed)
        outcome = Outcome(FAULTS["link_cut"])
        outcome.streams = self._load.finished[first:]
        await self._judge(outcome)
        return flapped, outcome

    def moved(self, outcome: Outcome) -> list[list[Move]]:
        """Of each stream, where it went on."""
        edges = self._world.geography.edges
        moves = {edge.name: self._world.moves(edge.name) for edge in edges}
        return [moves[stream.edge].get(stream.name, []) for stream in outcome.streams]

    # What answers had to be

    async def _judge(self, outcome: Outcome) -> None:
        for stream in outcome.streams:
            told = outcome.told[stream.name] = stream.told()
            if not told.whole:
                outcome.failed.append(f"{stream.name} at {stream.edge}: {told.error or 'cut off'}")
                continue
            reference = await self._reference(stream)
            if is_wrong(told, reference):
                outcome.wrong.append(stream.name)

    async def _reference(self, stream: TokenStream) -> Told:
        body = stream.body | {"stream": False}
        body.pop("stream_options")
        url = self._world.reference_url
        if not url:
            region = self._world.geography.regions[0]
            url = f"http://{region.address}:{CORE_HTTP_PORT}"
        status, answer = await post(f"{url}/v1/chat/completions", encode(body))
        if status != 200:
            raise Unavailable(f"no undisturbed answer for {stream.name}: {status} {answer}")
        choice = answer["choices"][0]
        return Told(choice["message"]["content"], choice["finish_reason"], answer["usage"])


def _had_ended(stream: TokenStream, at: float) -> bool:
    """Whether its last byte had come before the fault, or was on its way to the client."""
    return bool(stream.ended) and stream.reads[-1][0] <= at


def figures(outcome: Outcome) -> dict[str, Any]:
    """What the JSON says of a fault."""
    hits = outcome.hits
    whole = {name for name, told in outcome.told.items() if told.whole}
    wrong = set(outcome.wrong)
    gaps = [hit for hit in hits if hit.gap is not None and not hit.stayed]
    bounds = {f"{h.stream.edge}: {h.way}": round(h.bound_ms, 1) for h in gaps if h.bound_ms}
    within = [h for h in gaps if h.gap is not None and h.bound_ms and h.gap.gap_ms <= h.bound_ms]
    return {
        "gap_ms": spread([h.gap.gap_ms for h in gaps if h.gap is not None]),
        "silence_ms": spread([h.gap.silence_ms for h in hits if h.gap is not None]),
        "bound_ms": max(bounds.values(), default=None),
        "bounds_ms": bounds,
        "within_bound": len(within),
        "runs": outcome.runs,
        "runs_without_streams": outcome.empty_runs,
        "streams": len(hits),
        "streams_moved": sum(not h.stayed for h in hits),
        "streams_continued": sum(
            h.stream.name in whole and h.stream.name not in wrong for h in hits
        ),
        "tokens_wrong": len(wrong),
        "requests": len(outcome.streams),
        "failed": len(outcome.failed),
        "failures": outcome.failed[:10],
        "paths_up_s": spread([s for s in outcome.mend_s if s >= 0]),
        "paths_not_up": sum(s < 0 for s in outcome.mend_s),
    }


async def flapping(trial: Trial, world: World, seconds: float, seed: int) -> dict[str, Any]:
    """Links flap at random; what the JSON says of it."""
    flapped, outcome = await trial.while_flapping(seconds, seed)
    rules = PathPolicy()
    pairs = [(e.name, r.name) for e in world.geography.edges for r in world.geography.regions]
    bounds = {pair: flapped.bound(*pair, rules) for pair in pairs}
    beyond = [f"{e}-{r}" for (e, r), bound in bounds.items() if flapped.changes[e, r] > bound]
    found = {
        "seconds": round(flapped.seconds, 1),
        "cuts": flapped.flaps.total(),
        "path_changes": flapped.changes.total(),
        "path_changes_bound": sum(bounds.values()),
        "pairs": {
            f"{e}-{r}": {"changes": flapped.changes[e, r], "bound": bound}
            for (e, r), bound in bounds.items()
        },
        "pairs_beyond_bound": beyond,
        "streams_moved": sum(map(bool, trial.moved(outcome))),
        "requests": len(outcome.streams),
        "failed": len(outcome.failed),
        "failures": outcome.failed[:10],
        "tokens_wrong": len(outcome.wrong),
    }
    say("flapping: " + ", ".join(f"{k} {v}" for k, v in found.items() if k != "pairs"))
    return found


def show(all_figures: dict[str, dict[str, Any]]) -> None:
    table = Table(title="failover", title_justify="left")
    table.add_column("fault")
    for heading in ("gap p50, ms", "max", "bound", "within", "moved", "streams", "continued",
                    "wrong", "failed", "of", "runs", "silence p50", "max"):  # fmt: skip
        table.add_column(heading, justify="right")
    for name, of in all_figures.items():
        gap, silence = of["gap_ms"], of["silence_ms"]
        cells = (
            gap["p50"], gap["max"], of["bound_ms"], of["within_bound"], of["streams_moved"],
            of["streams"], of["streams_continued"], of["tokens_wrong"], of["failed"],
            of["requests"], of["runs"], silence["p50"], silence["max"],
        )  # fmt: skip
        table.add_row(name, *("" if c is None else f"{c:,.0f}" for c in cells))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


async def measure(
    geography: Geography, faults: Sequence[Fault], options: argparse.Namespace, report: Report
) -> None:
    """Start a world, let each of the faults strike, and take the figures down."""
    with tempfile.TemporaryDirectory(prefix="failover-", dir=BENCH) as folder:
        world = World(Path(folder), geography, engine=options.engine)
        try:
            say(f"starting the {geography.name} world")
            await world.start()
            edges = {
                e.name: (e.address, world.keys[geography.asks[e.name]]) for e in geography.edges
            }
            load = Load(edges, options.streams, options.tokens, options.seed)
            load.start()
            await asyncio.sleep(WARM_UP_S)
            trial = Trial(world, load, options.runs)
            for fault in faults:
                outcome = await trial.run(fault)
                report.figures[fault.name] = figures(outcome)
                for line in outcome.failed[:5]:
                    say(f"    failed: {line}")
            if options.flap_s and geography.name == "published":
                report.figures["flapping"] = await flapping(
                    trial, world, options.flap_s, options.seed
                )
            await load.stop()
        finally:
            world.close()


def main() -> None:
    parser = arguments(__doc__ or "", runs=20)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--faults", default=",".join(FAULTS), help="which, by comma")
    parser.add_argument("--streams", type=int, default=6, help="at a time, for each edge")
    parser.add_argument("--engine", choices=("sim", "torch"), default="sim")
    parser.add_argument("--flap-s", type=float, default=0.0, help="let links flap for so long")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.tokens = (100, 400) if options.engine == "sim" else (24, 64)
    wanted = [name for name in options.faults.split(",") if name]
    if unknown := [name for name in wanted if name not in FAULTS]:
        parser.error(f"no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    BENCH.mkdir(exist_ok=True)
    report = Report("failover", unit="ms", lower_is_better=True)
    report.note(f"engine: {options.engine}; {options.streams} streams at a time for each edge")
    for make in (published, internet):
        geography = make()
        faults = [FAULTS[name] for name in wanted if FAULTS[name].world == geography.name]
        if faults or (options.flap_s and make is published):
            uvloop.run(measure(geography, faults, options, report))
    show({name: of for name, of in report.figures.items() if name in FAULTS})
    report.finish(options.json)


if __name__ == "__main__":
    main()

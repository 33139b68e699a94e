"""Failover: how long a stream stands still when its path or its region dies, and what it loses.

    python -m benchmarks.failover [--json FILE] [--runs 20] [--faults link_cut,region_sigkill]
        [--streams 6] [--engine sim|torch] [--flap-s 300]

Real edges, cores and relays at the lab's addresses, with a WAN emulator between them; the engine is
simulated unless `--engine torch` says otherwise: 50 tokens a second for each stream, replay at
20,000 tokens a second. Each edge has `--streams` streams under way all the time, answers of 100 to
400 tokens, half greedy, half seeded, each prompt another one. Faults of a path or region strike the
three edges and regions in turn. One world has a cloud's published round-trip times; the relay is
killed in a second one, where the way through it is the best one, as on the public internet. A way
that was dead is preferred again after 0.5 s (`failback_s`, otherwise 5 s and more), so that the
next run finds its streams there; links flap (`--flap-s`) under the policy as it comes.

A stream is *hit* when it has begun to give tokens and the path (or region) that it is on is the
faulty one. For it, by its client's clock (`failover_figures.py` has the details):

- `gap_ms`: from the fault, or the order to make it, to the first byte that another path or region
  delivered. It counts as the other way's what comes after the token at which, by the edge's log,
  that way went on (with torch, whose tokens have any length, what comes after the longest
  silence). Of a stream that stays, as most do on a lossy way, it is the longest silence; a stream
  that ended on the old way before the fault did has none.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.failover_faults import FAULTS, Fault, Target
from benchmarks.failover_figures import (
    Told,
    bytes_at,
    gap_by_position,
    gap_by_silence,
    is_wrong,
    spread,
)
from benchmarks.failover_flapping import Flapped, changes, flap
from benchmarks.failover_maps import Geography, internet, published
from benchmarks.failover_streams import Load, TokenStream
from benchmarks.failover_world import Move, World, encode, post
from benchmarks.harness import BENCH, Report, Unavailable, arguments, say
from lab.world import CORE_HTTP_PORT
from topology.policy import PathPolicy

SOON_BACK = {"paths": {"failback_s": 0.5}}
WARM_UP_S = 1.5
HIT_S = 12.0  # how long to wait for streams on the path that is to fail
LATE_S = 1.0  # how long after a fault's end what ends a silence may still come
SEEN_S = 0.2  # what came last before the fault ended has reached the client
MEND_S = 30.0  # for all paths to be up again
TOKEN_BYTES = 3  # of the simulated engine's text


@dataclass
class Hit:
    """A stream that a fault hit, and where new requests went meanwhile."""

    stream: TokenStream
    at: float
    until: float  # when the fault was mended
    run: int
    target: Target
    way: str = ""  # that went on: "<region> <path>"
    bound_ms: float = 0.0
    gap_ms: float | None = None  # None: it ended on the old way, before the fault did
    silence_ms: float = 0.0
    stayed: bool = False  # on the way that it was on


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
        outcome.mend_s.append(mend_s)
        await asyncio.sleep(SEEN_S)
        hits = [Hit(s, at, ended, number, target) for s in streams]
        hits = [hit for hit in hits if self._was_there(hit)]
        outcome.hits += hits
        outcome.empty_runs += not hits
        for hit in hits:
            self._measure(hit, fault)
        self._say(outcome, target, number, hits)

    def _was_there(self, hit: Hit) -> bool:
        """Whether it was still under way when the fault struck, and still on the way that its
        headers name: an earlier fault may have moved it (but not with torch: too short)."""
        pieces = hit.stream.told().pieces
        if hit.stream.ended and hit.stream.reads[-1][0] <= hit.at:
            return False
        if self._world.engine != "sim":
            return True
        known = bytes_at(pieces, hit.at) // TOKEN_BYTES
        moves = self._world.moves(hit.stream.edge).get(hit.stream.name, ())
        return all(move.position >= known for move in moves)

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
        stream = hit.stream
        pieces = stream.told().pieces
        gap = gap_by_silence(pieces, hit.at, hit.until + LATE_S)
        move = self._went_on(hit, bytes_at(pieces, hit.at) // TOKEN_BYTES)
        hit.stayed = move is None
        region, path = (move.region, move.path) if move else (stream.region, stream.path)
        hit.way = f"{region} {path}"
        rtt = self._world.geography.rtt_of(stream.edge, region, path)
        hit.bound_ms = 2 * rtt + 300 + fault.grace_ms
        hit.silence_ms = gap.silence_ms if gap else 0.0
        hit.gap_ms = gap.gap_ms if gap else None
        if move is None:
            whole = stream.ended and stream.ended < hit.until
            hit.gap_ms = None if whole else hit.silence_ms
        elif move.position >= 0:
            exact = gap_by_position(pieces, hit.at, move.position * TOKEN_BYTES)
            hit.gap_ms = hit.gap_ms if exact is None else exact

    def _went_on(self, hit: Hit, known: int) -> Move | None:
        """How the hit stream, which had `known` tokens, went on another way, by the edge's log;
        None where it stayed."""
        edge, strikes = hit.stream.edge, hit.target.strikes
        moves = self._world.moves(edge).get(hit.stream.name, [])
        moves = [move for move in moves if not strikes(edge, move.region, move.path)]
        after = [move for move in moves if move.position >= known]
        if self._world.engine == "sim":
            return after[0] if after else None
        return replace(moves[0], position=-1) if moves else None

    def _say(self, outcome: Outcome, target: Target, number: int, hits: list[Hit]) -> None:
        gaps = [h.gap_ms for h in hits if h.gap_ms is not None]
        bound = max((h.bound_ms for h in hits), default=0.0)
        ways = ", ".join(sorted({h.way for h in hits})) or "nothing"
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


def figures(outcome: Outcome) -> dict[str, Any]:
    """What the JSON says of a fault."""
    hits = outcome.hits
    whole = {name for name, told in outcome.told.items() if told.whole}
    wrong = set(outcome.wrong)
    gaps = [hit for hit in hits if hit.gap_ms is not None]
    bounds = {f"{h.stream.edge}: {h.way}": round(h.bound_ms, 1) for h in gaps}
    beyond = [h for h in gaps if h.gap_ms is not None and h.gap_ms > h.bound_ms]
    return {
        "gap_ms": spread([h.gap_ms for h in gaps if h.gap_ms is not None]),
        "silence_ms": spread([h.silence_ms for h in hits]),
        "bound_ms": max(bounds.values(), default=None),
        "bounds_ms": bounds,
        "within_bound": len(gaps) - len(beyond),
        "beyond_bound": [
            f"run {h.run + 1}, {h.target.name}: {h.stream.name} at {h.stream.edge}, on by {h.way}, "
            f"{h.gap_ms:.0f} ms of {h.bound_ms:.0f}"
            for h in beyond
        ],
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


async def quiet(world: World, seconds: float) -> dict[str, Any]:
    """Load, and no fault at all: whatever changes is a false alarm."""
    before = changes(world)
    await asyncio.sleep(seconds)
    made = (changes(world) - before).total()
    say(f"  quiet for {seconds:.0f} s: {made} path changes")
    return {"seconds": seconds, "path_changes": made}


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
            report.figures.setdefault("quiet", {})[geography.name] = await quiet(
                world, options.quiet_s
            )
            for fault in faults:
                outcome = await trial.run(fault)
                report.figures[fault.name] = figures(outcome)
                for line in outcome.failed[:5]:
                    say(f"    failed: {line}")
            if options.flap_s and not faults:
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
    parser.add_argument("--quiet-s", type=float, default=8.0, help="without faults, beforehand")
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
    # Istanbul's region is a relay of Tokyo's: killed, it would leave Istanbul with none at all.
    for geography in (published(), internet(("tokyo", "london"))):
        faults = [FAULTS[name] for name in wanted if FAULTS[name].world == geography.name]
        if faults:
            geography = replace(geography, policy=SOON_BACK)
            uvloop.run(measure(geography, faults, options, report))
    if options.flap_s:
        uvloop.run(measure(published(), (), options, report))
    show({name: of for name, of in report.figures.items() if name in FAULTS})
    report.finish(options.json)


if __name__ == "__main__":
    main()

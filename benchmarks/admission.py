"""Predictive admission: one core (engine `sim`), offered once, twice and four times its capacity.

    python -m benchmarks.admission [--json FILE] [--seconds 25] [--against CHECKOUT]

Requests come at random, open loop, straight over the overlay, each with 10 s to its deadline; one
in ten is VIP. Goodput is whole answers in time, per second of the second part of the run, when the
queue has filled. `--against` runs another checkout of ours beside it, as `before`: at the same time
and with the same requests, since both cores sleep nearly all of the time. About 90 seconds.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import statistics
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.harness import OURS, Process, Report, Sample, arguments, say
from control_plane.pki.authority import create_ca, issue
from region_core.engine.base import Limits
from region_core.engine.sim import SimEngine, SimSettings
from region_core.settings import SchedulingSettings
from runtime.errors import TradewindError
from runtime.identity import Identity, Principal
from topology.overlay.frames import End, Request, Tokens
from topology.overlay.tunnel import Tunnel

DEADLINE_S = 10.0
LOADS = (1.0, 2.0, 4.0)
VIP = 0.1
SETTLING_S = 10.0  # as long as a deadline: what comes before is not counted
MODEL = "smollm2-135m-instruct"
QUESTION = "What does the wind do at the harbour wall in winter, and who sees it?"


@dataclass
class Asked:
    """One request, and what became of it. Seconds from the beginning of the run."""

    at: float
    vip: bool
    first: float | None = None
    done: float | None = None
    refused: float | None = None  # without a single token
    cut: bool = False  # after the first
    why: str = ""

    @property
    def good(self) -> bool:
        return self.done is not None and self.done - self.at <= DEADLINE_S


@dataclass
class Side:
    name: str
    port: int
    core: Process
    asked: list[Asked] = field(default_factory=list)


def capacity_per_s() -> float:
    """Answers a second of the default simulated engine with all slots in use."""
    settings, slots = SimSettings(), SchedulingSettings().slots
    engine = SimEngine(settings, Limits(slots, 2048), MODEL)
    steps = statistics.fmean(map(len, engine._answers)) + 1  # and the end
    step_s = (settings.step_ms + settings.step_ms_per_sequence * (slots - 1)) / 1000
    prompt = len(engine.tokenizer.encode(f"user: {QUESTION}\n"))
    return 1 / (steps * step_s / slots + prompt / settings.prefill_tokens_per_s)


def start(name: str, checkout: Path, folder: Path, pki: Path, port: int) -> Side:
    files = issue(pki, Principal("core", "frankfurt"), folder / name, hosts=("127.0.0.1",))
    document = {
        "region": "frankfurt",
        "identity": {part: str(getattr(files, part)) for part in ("certificate", "key", "ca")},
        "overlay": {"host": "127.0.0.1", "port": port},
        "engine": "sim",
        "shutdown_grace_ms": 0,
        "log_level": "warning",
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(document))
    command = [sys.executable, "-m", "region_core", "run", "--settings", str(path)]
    env = {"PYTHONPATH": str(checkout)}
    return Side(name, port, Process(f"admission-{name}", command, env=env, cwd=checkout))


def arrivals(per_s: float, seconds: float, seed: int) -> list[Asked]:
    rng, now, found = Random(seed), 0.0, []
    while (now := now + rng.expovariate(per_s)) < seconds:
        found.append(Asked(now, rng.random() < VIP))
    return found


async def ask(tunnel: Tunnel, asked: Asked, number: int, began: float) -> None:
    """One request to its end."""
    loop = asyncio.get_running_loop()
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]})
    request = Request(
        f"{began}-{number}", "acme", MODEL, int(DEADLINE_S * 1000), 1 if asked.vip else 3, 1, True
    )
    try:
        async with asyncio.timeout(DEADLINE_S + 5):
            exchange = tunnel.open(request, body.encode())
            while not isinstance(frame := await exchange.next(), End):
                if asked.first is None and isinstance(frame, Tokens):
                    asked.first = loop.time() - began
            asked.done = loop.time() - began
    except (TradewindError, TimeoutError) as error:
        asked.why = str(error)[:50]
        if asked.first is None:
            asked.refused = loop.time() - began
        else:
            asked.cut = True


async def offer(sides: list[Side], edge: Identity, per_s: float, seconds: float, seed: int) -> None:
    """The same requests to each side, at the same times."""
    loop = asyncio.get_running_loop()
    tunnels = [Tunnel("frankfurt", f"127.0.0.1:{side.port}", edge) for side in sides]
    for side, tunnel in zip(sides, tunnels, strict=True):
        side.asked = arrivals(per_s, seconds, seed)
        tunnel.start()
    async with asyncio.timeout(30):
        while not all(tunnel.connected for tunnel in tunnels):
            await asyncio.sleep(0.05)
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for number, at in enumerate(asked.at for asked in sides[0].asked):
            await asyncio.sleep(max(0.0, began + at - loop.time()))
            for side, tunnel in zip(sides, tunnels, strict=True):
                tasks.create_task(ask(tunnel, side.asked[number], number, began))
    for tunnel in tunnels:
        await tunnel.close()


def sample(side: Side, seconds: float) -> Sample:
    good = [a.done for a in side.asked if a.good and a.done is not None]
    goodput = sum(SETTLING_S <= done < seconds for done in good) / (seconds - SETTLING_S)
    counted = [a for a in side.asked if a.at >= SETTLING_S]
    vip = [a for a in counted if a.vip]
    waited = [a.refused - a.at for a in counted if a.refused is not None]
    notes = {
        "first token p50, s": _quantile([a.first - a.at for a in counted if a.first], 0.5),
        "first token p99, s": _quantile([a.first - a.at for a in counted if a.first], 0.99),
        "VIP in time": sum(a.good for a in vip) / max(1, len(vip)),
        "VIP first token p99, s": _quantile([a.first - a.at for a in vip if a.first], 0.99),
        "in time, of those offered": sum(a.good for a in counted) / max(1, len(counted)),
        "refused before a token": len(waited) / max(1, len(counted)),
        "time to a refusal p99, s": _quantile(waited, 0.99),
        "cut in the middle": sum(a.cut for a in counted) / max(1, len(counted)),
    }
    return Sample(goodput, notes=notes)


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def main() -> None:
    parser = arguments(__doc__ or "", runs=1, seconds=25.0)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of ours")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="times capacity")
    parser.add_argument("--port", type=int, default=29430, help="the first of two UDP ports")
    given = parser.parse_args()
    seconds = max(given.seconds, 1.5 * SETTLING_S)
    capacity = capacity_per_s()
    say(f"capacity: {capacity:.1f} answers a second (16 slots, answers of 24 to 96 tokens)")
    report = Report("admission", unit="answers in time/s")
    checkouts = {OURS: Path.cwd()} | ({"before": given.against.resolve()} if given.against else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_ca(folder / "pki")
        edge = Identity.load(issue(folder / "pki", Principal("edge", "tokyo"), folder / "edge"))
        for load in given.loads:
            with ExitStack() as stack:  # new cores each time: what they learn is part of it
                sides = [
                    start(side, checkout, folder, folder / "pki", given.port + index)
                    for index, (side, checkout) in enumerate(checkouts.items())
                ]
                for side in sides:
                    stack.enter_context(side.core)
                asyncio.run(offer(sides, edge, load * capacity, seconds, seed=int(10 * load)))
                report.add(f"{load:g}x", {side.name: [sample(side, seconds)] for side in sides})
            for side in sides:
                found = report.figures[f"{load:g}x"]["sides"][side.name]["notes"]
                why = Counter(re.sub(r"[0-9.]+", "N", a.why) for a in side.asked if a.why)
                say(f"  {side.name}: " + "; ".join(f"{n} x {text}" for text, n in why.items()))
                say(f"  {side.name}: " + "; ".join(f"{k} {v:.3g}" for k, v in found.items()))
    report.note("both sides ran at the same time, with the same requests; nothing else was varied")
    report.finish(given.json)


if __name__ == "__main__":
    main()

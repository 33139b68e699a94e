"""Path choice under noise: how often it changes its mind, and what holding on costs.

    python -m benchmarks.hysteresis [--json FILE] [--hours 1]

A simulation, seeded and without a network: it answers what the hysteresis of
`topology.paths.Choice` is worth, in changes per hour and path, and what it costs, in milliseconds
above the best path at each moment. The four sides see the same measurements, as the path monitor
gives them: a probe a second, the least of the last ten seconds, losses of the last thirty.

Worlds: `cloud`, the published round trips of eleven cities to three regions, straight and through
the other two; `internet`, three pairs whose straight way is bad; `ties`, ways that take about the
same, within 5%. Noise: `jitter`, 5% and 1 ms on each probe; `lossy`, also 1% lost at random on
every way; `evening`, jitter, queues that build up for a minute (5 to 60 ms) and bursts of loss (1
to 5%) on one way or another, every five minutes on each; `flapping`, an evening whose straight way
dies for a second or so every twenty.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from topology.latency import WindowedMin, published_rtt_ms
from topology.overlay.loss import LossWindow
from topology.paths import Choice
from topology.policy import PathPolicy

SEED = 14
REGIONS = ("Singapore", "Frankfurt", "Dubai")
EDGES = (
    "Tokyo", "Mumbai", "Riyadh", "London", "Sao Paulo", "Sydney", "Virginia", "Bahrain",
    "Hong Kong", "Seoul", "Tel Aviv",
)  # fmt: skip
SIDES = {
    "no hysteresis": PathPolicy(better_by_ms=0.0, better_by_share=0.0, failback_s=0.0),
    "10 ms": PathPolicy(better_by_share=0.0, failback_s=0.0),
    "10 ms and a third": PathPolicy(failback_s=0.0),
    "ours: and held 5 s": PathPolicy(),
}
NOISES = ("jitter", "lossy", "evening", "flapping")
RANDOM_LOSS = 0.01

Ways = dict[str, float]  # relay -> true round trip in ms


class Seen(Struct, frozen=True):
    """What a monitor would say."""

    rtt_ms: float | None
    jitter_ms: float
    loss_out: float | None
    loss_back: float
    state: str
    why: str = ""
    smoothed_ms: float | None = None


def worlds() -> dict[str, list[Ways]]:
    cloud = []
    for edge in EDGES:
        for region in REGIONS:
            straight = published_rtt_ms(edge, region) or 0.0
            ways = {"": straight}
            for relay in REGIONS:
                there, on = published_rtt_ms(edge, relay), published_rtt_ms(relay, region)
                if relay != region and there and on:
                    ways[relay] = there + on
            cloud.append(ways)
    internet = [
        {"": 270.0, "frankfurt": 149.0, "singapore": 330.0},
        {"": 247.0, "singapore": 157.0, "frankfurt": 340.0},
        {"": 270.0, "dubai": 203.0, "frankfurt": 230.0},
    ]
    rng = Random(SEED)
    ties = [{r: 100.0 * (1 + 0.05 * rng.random()) for r in ("", "a", "b")} for _ in range(10)]
    return {"cloud": cloud, "internet": internet, "ties": ties}


class Way:
    """One way over time: what it takes, what it loses, whether it is dead."""

    def __init__(self, rtt_ms: float, rng: Random, noise: str, straight: bool) -> None:
        self._rtt_ms = rtt_ms
        self._rng = rng
        self._noise = noise
        self._flaps = noise == "flapping" and straight
        self._least = WindowedMin()
        self._losses = LossWindow()
        self._queue_ms, self._queue_until = 0.0, 0.0
        self._loss, self._loss_until = 0.0, 0.0
        self._dead_until, self._next_death = 0.0, 60.0

    def at(self, now: float) -> tuple[Seen, float]:
        """What is measured, and what an exchange would take now; infinite where it is dead."""
        rng = self._rng
        if self._noise in ("evening", "flapping"):
            if now >= self._queue_until and rng.random() < 1 / 300:
                self._queue_ms = rng.uniform(5, 60)
                self._queue_until = now + rng.expovariate(1 / 60)
            if now >= self._loss_until and rng.random() < 1 / 300:
                self._loss, self._loss_until = rng.uniform(0.01, 0.05), now + 10
        if self._flaps and now >= self._next_death:
            self._dead_until = now + rng.uniform(0.5, 2.0)
            self._next_death = self._dead_until + rng.expovariate(1 / 20)
        queue_ms = self._queue_ms if now < self._queue_until else 0.0
        likely = RANDOM_LOSS if self._noise == "lossy" else 0.0
        self._losses.add(now, 1, rng.random() < (self._loss if now < self._loss_until else likely))
        true_ms = self._rtt_ms + queue_ms
        if now < self._dead_until:
            return Seen(None, 0.0, 0.0, 0.0, "silent"), float("inf")
        self._least.add(now, true_ms + rng.expovariate(1 / (0.05 * true_ms + 1)))
        measured_ms = self._least.at(now)
        return Seen(measured_ms, 0.05 * true_ms, self._losses.share(now), 0.0, "up"), true_ms


class Tally(Struct):
    changes: int = 0
    above_ms: float = 0.0  # the sum over all seconds
    dead_s: int = 0
    seconds: int = 0


def seconds(
    ways: Ways, noise: str, seed: int, hours: float
) -> Iterator[dict[str, tuple[Seen, float]]]:
    held = {
        relay: Way(ms, Random(f"{seed} {relay}"), noise, relay == "") for relay, ms in ways.items()
    }
    for second in range(int(hours * 3600)):
        yield {relay: way.at(float(second)) for relay, way in held.items()}


def simulate(many: list[Ways], noise: str, hours: float) -> dict[str, Tally]:
    tallies = {side: Tally() for side in SIDES}
    for number, ways in enumerate(many):
        choices = {side: Choice(rules) for side, rules in SIDES.items()}
        for second, now in enumerate(seconds(ways, noise, SEED + number, hours)):
            estimates = {relay: seen for relay, (seen, _) in now.items()}
            best_ms = min(true_ms for _, true_ms in now.values())
            for side, choice in choices.items():
                found = choice.advance("r", estimates, 0.0, float(second))
                if second < 30:  # the first measurements are not what is asked about
                    continue
                tally = tallies[side]
                tally.seconds += 1
                tally.changes += found.changed is not None
                used_ms = now[found.first.relay][1] if found.first is not None else float("inf")
                if used_ms < float("inf"):
                    tally.above_ms += used_ms - best_ms
                else:
                    tally.dead_s += 1
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--hours", type=float, default=1.0, help="simulated")
    given = parser.parse_args()
    figures: dict[str, dict[str, dict[str, float]]] = {}
    table = Table("world", "noise", "rule", "changes/h", "ms above the best", title="hysteresis")
    for world, many in worlds().items():
        for noise in NOISES:
            for side, tally in simulate(many, noise, given.hours).items():
                hours = tally.seconds / 3600
                row = {
                    "changes_per_hour": round(tally.changes / hours, 2),
                    "ms_above_best": round(tally.above_ms / tally.seconds, 2),
                }
                figures.setdefault(f"{world}.{noise}", {})[side] = row
                table.add_row(world, noise, side, *(str(value) for value in row.values()))
    Console(width=110).print(table)
    if given.json:
        given.json.write_text(json.dumps({"figures": figures}, indent=2))


if __name__ == "__main__":
    main()

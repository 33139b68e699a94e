"""Links that flap at random for minutes: what paths do, and whether a request is lost.

Of each edge's links one at a time is cut, in one direction or both, for a random time; so are, one
at a time, the links between regions that relays use. Every edge so always has a way to some region.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.failover_world import PATH_CHANGED, World
from benchmarks.harness import say
from lab.wan.figures import Way
from topology.policy import PathPolicy

UP_S = 4.0  # means of exponential times
DOWN_S = 1.0
UP_RANGE_S = (0.3, 20.0)
DOWN_RANGE_S = (0.05, 8.0)
SAY_EVERY_S = 15.0
WAYS: tuple[Way, ...] = ("both", "both", "out", "back")


@dataclass(frozen=True)
class Flapped:
    """`flaps`: link -> how often it was cut. `changes`: (edge, region) -> path changes."""

    seconds: float
    flaps: Counter[str]
    changes: Counter[tuple[str, str]]

    def bound(self, edge: str, region: str, rules: PathPolicy) -> int:
        """How often the path of an edge to a region may change.

        By the flaps: each cut of a link that one of its ways uses may make it leave and come back.
        By the hold: each way is left at most once in `failback_s`.
        """
        used = [f"{edge}-{region}"]
        for link in self.flaps:
            source, _, target = link.partition("-")
            if (source == edge and target != region) or (source != edge and target == region):
                used.append(link)
        by_flaps = 2 * sum(self.flaps[link] for link in used)
        ways = 1 + rules.relays_per_region
        by_hold = ways * (1 + int(self.seconds / rules.failback_s))
        return min(by_flaps, by_hold)


async def flap(world: World, seconds: float, seed: int) -> Flapped:
    """Let links flap for so long; all of them are mended when this returns."""
    geography = world.geography
    before = changes(world)
    groups = [
        [f"{edge.name}-{region.name}" for region in geography.regions] for edge in geography.edges
    ]
    edges = {edge.name for edge in geography.edges}
    groups.append([link.name for link in world.links if link.name.partition("-")[0] not in edges])
    flaps: Counter[str] = Counter()
    begun = time.monotonic()
    tasks = [
        asyncio.create_task(_flap(world, group, begun + seconds, Random(f"{seed}/{index}"), flaps))
        for index, group in enumerate(groups)
    ]
    tasks.append(asyncio.create_task(_tell(world, begun, seconds, flaps, before)))
    await asyncio.gather(*tasks)
    return Flapped(time.monotonic() - begun, flaps, changes(world) - before)


async def _flap(
    world: World, links: Sequence[str], until: float, rng: Random, flaps: Counter[str]
) -> None:
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(left, _drawn(rng, UP_S, UP_RANGE_S)))
        link, way = rng.choice(links), rng.choice(WAYS)
        flaps[link] += 1
        await world.set_link(link, way, cut=True)
        await asyncio.sleep(_drawn(rng, DOWN_S, DOWN_RANGE_S))
        await world.set_link(link, way, cut=False)


def _drawn(rng: Random, mean_s: float, within: tuple[float, float]) -> float:
    return min(max(rng.expovariate(1 / mean_s), within[0]), within[1])


async def _tell(
    world: World, begun: float, seconds: float, flaps: Counter[str],
    before: Counter[tuple[str, str]],
) -> None:  # fmt: skip
    while (past := time.monotonic() - begun) < seconds:
        await asyncio.sleep(min(SAY_EVERY_S, seconds - past))
        made = (changes(world) - before).total()
        say(f"  flapping, {time.monotonic() - begun:.0f} s: {flaps.total()} cuts, {made} changes")


def changes(world: World) -> Counter[tuple[str, str]]:
    """(edge, region) -> path changes so far, by the edges' logs; not those from no way at all."""
    return Counter(
        (edge.name, line["region"])
        for edge in world.geography.edges
        for line in world.log(edge.name, PATH_CHANGED)
        if line["part"] == "paths" and line["before"]
    )

"""The faults of the failover benchmark: how each begins, how it ends, and whom it hits."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.failover_streams import TokenStream
from benchmarks.failover_world import World
from lab.wan.figures import Way

STOPPED_MS = 1000.0  # more where a region answers nothing but did not close either


@dataclass(frozen=True)
class Target:
    """What is struck: a link from an edge, a region, or the relay of an edge's path.

    `share`: of one edge's streams, how many must be on it before it is struck.
    """

    region: str
    edge: str = ""  # "": all of them
    relay: str = ""
    share: float = 0.5

    @property
    def name(self) -> str:
        if self.relay:
            return f"{self.relay} between {self.edge} and {self.region}"
        return f"{self.edge}-{self.region}" if self.edge else self.region

    def hits(self, stream: TokenStream) -> bool:
        """Whether a stream is on it, by what its headers said."""
        return self.strikes(stream.edge, stream.region, stream.path)

    def strikes(self, edge: str, region: str, path: str) -> bool:
        """Whether a way leads over it."""
        if region != self.region or (self.edge and edge != self.edge):
            return False
        if self.relay:
            return path == f"via {self.relay}"
        return not self.edge or path == "direct"


# Returns when it was done, on the machine's monotonic clock.
Act: TypeAlias = Callable[[World, Target], Awaitable[float]]


@dataclass(frozen=True)
class Fault:
    """`hold_s`: how long it lasts. `grace_ms`: what the bound adds for it."""

    name: str
    begin: Act
    end: Act
    targets: tuple[Target, ...]
    hold_s: float = 1.5
    grace_ms: float = 0.0
    world: str = "published"


def _link(direction: Way, **figures: float | bool) -> tuple[Act, Act]:
    mended = {name: type(value)(0) for name, value in figures.items()}

    async def begin(world: World, target: Target) -> float:
        return await world.set_link(f"{target.edge}-{target.region}", direction, **figures)

    async def end(world: World, target: Target) -> float:
        return await world.set_link(f"{target.edge}-{target.region}", direction, **mended)

    return begin, end


def _now(act: Callable[[World, Target], None]) -> Act:
    async def acted(world: World, target: Target) -> float:
        at = time.monotonic()
        act(world, target)
        return at

    return acted


_kill = _now(lambda world, target: world.kill(f"core-{target.relay or target.region}"))
_again = _now(lambda world, target: world.again(f"core-{target.relay or target.region}"))
_stop = _now(lambda world, target: world.signal(f"core-{target.region}", signal.SIGSTOP))
_go_on = _now(lambda world, target: world.signal(f"core-{target.region}", signal.SIGCONT))
_hang = _now(lambda world, target: world.hang(target.region))
_release = _now(lambda world, target: world.unhang(target.region))

LINKS = (
    Target("singapore", "tokyo"),
    Target("dubai", "mumbai"),
    Target("frankfurt", "london"),
)
REGIONS = (Target("singapore"), Target("dubai"), Target("frankfurt"))
RELAYS = (
    Target("dubai", "london", "frankfurt"),
    Target("dubai", "tokyo", "singapore"),
)

_ALL = (
    Fault("link_cut", *_link("both", cut=True), LINKS),
    Fault("cut_out", *_link("out", cut=True), LINKS),
    Fault("cut_back", *_link("back", cut=True), LINKS),
    Fault("loss_30", *_link("both", loss=0.3), LINKS, hold_s=2.5),
    Fault("region_sigkill", _kill, _again, REGIONS, hold_s=1.2),
    Fault("region_sigstop", _stop, _go_on, REGIONS, hold_s=2.2, grace_ms=STOPPED_MS),
    Fault("engine_hangs", _hang, _release, REGIONS, hold_s=2.2, grace_ms=STOPPED_MS),
    Fault("relay_sigkill", _kill, _again, RELAYS, hold_s=1.2, world="internet"),
)
FAULTS = {fault.name: fault for fault in _ALL}

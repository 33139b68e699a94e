"""What a story says, once it is read: see `language`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Way: TypeAlias = Literal["out", "back", "both"]
ANYONE = "anyone"  # the tenant who may be served everywhere


def to_region(region: str) -> str:
    """The tenant whom one region alone may serve."""
    return f"to-{region}"


@dataclass(frozen=True)
class World:
    edges: tuple[str, ...]
    regions: tuple[str, ...]

    def links(self) -> tuple[str, ...]:
        pairs = [(s, r) for s in (*self.edges, *self.regions) for r in self.regions if s != r]
        return tuple(f"{source}-{region}" for source, region in pairs)

    def processes(self) -> tuple[str, ...]:
        return (*(f"core-{r}" for r in self.regions), *(f"edge-{e}" for e in self.edges))


@dataclass(frozen=True)
class Streams:
    """So many at a time, each followed by the next."""

    count: int
    edge: str
    tenant: str
    tokens: int


@dataclass(frozen=True)
class Links:
    """Change links. No figures: as they were at the beginning."""

    names: tuple[str, ...]
    way: Way
    for_ms: float
    figures: dict[str, Any]


@dataclass(frozen=True)
class Process:
    verb: str
    name: str


@dataclass(frozen=True)
class Wait:
    """Nothing happens; what is below is looked at then."""


@dataclass(frozen=True)
class PathIs:
    """`path` as an edge names it: `direct`, or `via <region>`."""

    edge: str
    region: str
    path: str


@dataclass(frozen=True)
class ServedBy:
    edge: str
    tenant: str
    regions: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    edge: str
    tenant: str
    status: int
    text: str


@dataclass(frozen=True)
class Awaited:
    line: int
    within_s: float
    what: PathIs | ServedBy | Answer


@dataclass(frozen=True)
class Step:
    line: int
    at_s: float
    action: Links | Process | Wait
    awaited: tuple[Awaited, ...] = ()


@dataclass(frozen=True)
class Count:
    """`relation` is ==, >= or <=; `tenant` "": of all."""

    what: str
    tenant: str
    relation: str
    number: int


@dataclass(frozen=True)
class ChangesAtMost:
    """How often an edge's requests to a region took another path."""

    edge: str
    region: str
    number: int


@dataclass(frozen=True)
class SilenceAtMost:
    """The longest time that any stream, once begun, gave nothing."""

    seconds: float


@dataclass(frozen=True)
class TokensEqual:
    """Every stream said what an undisturbed one says, or began to."""


@dataclass(frozen=True)
class AtTheEnd:
    line: int
    what: Count | ChangesAtMost | SilenceAtMost | TokensEqual


@dataclass(frozen=True)
class Story:
    name: str
    world: World
    tenants: dict[str, tuple[str, ...]] = field(default_factory=dict)
    streams: tuple[Streams, ...] = ()
    steps: tuple[Step, ...] = ()
    expected: tuple[AtTheEnd, ...] = ()
    end_s: float = 0.0

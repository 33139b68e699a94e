"""What a link is like: the figures of each of its two directions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from lab.errors import LabError
from topology.fields import HostPort

Milliseconds: TypeAlias = Annotated[float, Meta(ge=0, le=60_000)]
FlapMilliseconds: TypeAlias = Annotated[float, Meta(ge=10, le=3_600_000)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
BitPerSecond: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]
Bytes: TypeAlias = Annotated[int, Meta(ge=0, le=2**30)]
Way: TypeAlias = Literal["out", "back", "both"]

OUT: Literal["out"] = "out"  # from whoever dials the link to its target
BACK: Literal["back"] = "back"
BOTH: Literal["both"] = "both"


class Flap(Struct, frozen=True, forbid_unknown_fields=True):
    """On and off in turn, first on. `random`: for random times of these means, from the seed."""

    up_ms: FlapMilliseconds
    down_ms: FlapMilliseconds
    random: bool = False


class Figures(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One direction of a link. Each packet suffers the first of these that takes it, in order:
    cut or flap, loss, a full queue; then it waits for the wire, and travels."""

    latency_ms: Milliseconds = 0.0
    jitter_ms: Milliseconds = 0.0  # added to the latency, uniformly from 0 to this
    loss: Share = 0.0  # the probability of each packet to be lost
    bandwidth_bit_per_s: BitPerSecond = 0.0  # 0: without limit
    queue_ms: Milliseconds = 100.0  # what waits for the wire, in time on it; more is dropped
    queue_bytes: Bytes = 0  # the same in bytes; 0: `queue_ms` counts
    duplicate: Share = 0.0  # the probability of each packet to arrive twice
    reorder: Share = 0.0  # and of being overtaken by those up to 10 ms behind it
    cut: bool = False
    flap: Flap | None = None


FIGURES = Figures.__struct_fields__


class WanLink(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One link. Its own figures hold both ways, half of `rtt_ms` each way; where `out` or `back`
    is given, it holds that way instead."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
    listen: HostPort
    target: HostPort
    rtt_ms: Milliseconds = 0.0
    jitter_ms: Milliseconds = 0.0
    loss: Share = 0.0
    bandwidth_bit_per_s: BitPerSecond = 0.0
    cut: bool = False
    out: Figures | None = None
    back: Figures | None = None

    def figures(self, way: Literal["out", "back"]) -> Figures:
        own = self.out if way == OUT else self.back
        return own or Figures(
            latency_ms=self.rtt_ms / 2,
            jitter_ms=self.jitter_ms,
            loss=self.loss,
            bandwidth_bit_per_s=self.bandwidth_bit_per_s,
            cut=self.cut,
        )


class WanSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What `python -m lab.wan` reads. The same seed gives each packet of a direction, counted
    from the first, the same fate. `control`: the socket that orders come in by; none: no orders."""

    links: Annotated[tuple[WanLink, ...], Meta(min_length=1)]
    seed: int = 1
    control: Path | None = None

    def __post_init__(self) -> None:
        for what in ("name", "listen"):
            seen: set[str] = set()
            for link in self.links:
                value = getattr(link, what)
                if value in seen:
                    raise ValueError(f"two links have the {what} {value}")
                seen.add(value)


def checked(changes: dict[str, Any]) -> dict[str, Any]:
    """Changes of figures by name, with `rtt_ms` as half of it each way. Raises `LabError`."""
    wanted = dict(changes)
    rtt_ms = wanted.pop("rtt_ms", None)
    if rtt_ms is not None:
        if "latency_ms" in wanted:
            raise LabError("rtt and latency are both given: name one of them")
        wanted["latency_ms"] = rtt_ms / 2
    unknown = [name for name in wanted if name not in FIGURES]
    if unknown:
        raise LabError(f"no figure {unknown[0]!r}", hint=f"there are: rtt_ms, {', '.join(FIGURES)}")
    try:
        figures = msgspec.convert(msgspec.to_builtins(wanted), Figures)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$.")
        raise LabError(f"{place.rstrip('`')}: {said}") from error
    return {name: getattr(figures, name) for name in wanted}

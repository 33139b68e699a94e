"""What the director tells one node, beside the configuration that all nodes share.

It travels on the same xDS stream as a resource of its own type, named after the node. A node
keeps the last one, on disk too, and goes by it when the control plane is gone. Everything in it
yields to the configuration: residency, routes and overrides are checked first.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import msgspec
from msgspec import Struct

from runtime.validation import InvalidDocument, Problem


class Directive(Struct, frozen=True, omit_defaults=True):
    """For one node. `number` rises with every change of any node's directive, whoever directs: of
    two directives the one of the higher number is the newer.

    `shares`: demand class (see `topology.demand`) -> region -> share of the class's requests at
    this edge, 0 to 1; they sum to 1 less what is shed. A class that is not named goes by latency.
    """

    node: str = ""  # its principal, "edge/tokyo"
    term: int = 0  # the director's: another one when another takes over
    number: int = 0
    shares: dict[str, dict[str, float]] = {}
    shed: dict[str, float] = {}  # demand class -> share that no region has room for
    drains: dict[str, float] = {}  # region -> percent of a paced override that holds now
    overrides: dict[str, int] = {}  # region -> revision of the Override that `drains` is of
    down: tuple[str, ...] = ()  # regions that are down for everybody
    quotas: dict[str, float] = {}  # tenant -> requests per second that this node may admit
    floors: dict[str, float] = {}  # tenant -> what is left of it when nobody is heard for long


NONE = Directive()

_ROUNDING = 1e-6  # what the shares of many regions may add up to by rounding


def encode(directive: Directive) -> bytes:
    return msgspec.json.encode(directive)


def decode(data: bytes, source: str) -> Directive:
    """The reverse of `encode`; raises `InvalidDocument`."""
    try:
        directive = msgspec.json.decode(data, type=Directive)
    except msgspec.MsgspecError as error:
        raise InvalidDocument([Problem(source, "", str(error), "a directive")]) from error
    problems = [Problem(source, *mistake) for mistake in _mistakes(directive)]
    if problems:
        raise InvalidDocument(problems)
    return directive


def _mistakes(directive: Directive) -> Iterator[tuple[str, str, str]]:
    """Path, what is there, and what may be: numbers that nobody could act upon."""
    for name, shares in directive.shares.items():
        for region, share in shares.items():
            if not 0.0 <= share <= 1.0 + _ROUNDING:
                yield f"shares.{name}.{region}", f"{share:g}", "0 to 1"
        if sum(shares.values()) > 1.0 + _ROUNDING:
            yield f"shares.{name}", f"{sum(shares.values()):g} in all", "at most 1"
    for name, share in directive.shed.items():
        if not 0.0 <= share <= 1.0 + _ROUNDING:
            yield f"shed.{name}", f"{share:g}", "0 to 1"
    for region, percent in directive.drains.items():
        if not 0.0 <= percent <= 100.0:
            yield f"drains.{region}", f"{percent:g}", "0 to 100"
    for path, quotas in (("quotas", directive.quotas), ("floors", directive.floors)):
        for tenant, quota in quotas.items():
            if not (isfinite(quota) and quota >= 0.0):
                yield f"{path}.{tenant}", f"{quota:g}", "requests per second, 0 or more"

"""What the director tells one node, beside the configuration that all nodes share.

It travels on the same xDS stream as a resource of its own type, named after the node. A node
keeps the last one, on disk too, and goes by it when the control plane is gone. Everything in it
yields to the configuration: residency, routes and overrides are checked first.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from runtime.validation import InvalidDocument, Problem


class Directive(Struct, frozen=True, omit_defaults=True):
    """For one node. `number` rises with every change of any node's directive.

    `shares`: demand class (see `topology.demand`) -> region -> share of the class's requests at
    this edge, 0 to 1; they sum to 1 less what is shed. A class that is not named goes by latency.
    """

    node: str = ""  # its principal, "edge/tokyo"
    term: int = 0  # the director's: rises when another takes over
    number: int = 0
    shares: dict[str, dict[str, float]] = {}
    shed: dict[str, float] = {}  # demand class -> share that no region has room for
    drains: dict[str, float] = {}  # region -> percent of a paced override that holds now
    overrides: dict[str, int] = {}  # region -> revision of the Override that `drains` is of
    down: tuple[str, ...] = ()  # regions that are down for everybody
    quotas: dict[str, float] = {}  # tenant -> requests per second that this node may admit
    floors: dict[str, float] = {}  # tenant -> what is left of it when nobody is heard for long


NONE = Directive()


def encode(directive: Directive) -> bytes:
    return msgspec.json.encode(directive)


def decode(data: bytes, source: str) -> Directive:
    """The reverse of `encode`; raises `InvalidDocument`."""
    try:
        return msgspec.json.decode(data, type=Directive)
    except msgspec.MsgspecError as error:
        raise InvalidDocument([Problem(source, "", str(error), "a directive")]) from error

"""Where one edge worker stands on the degradation ladder, as it told with its last heartbeat."""

from __future__ import annotations

from msgspec import Struct

from topology.wire.ladder_reports import StandingReport


class NodeLadder(Struct, frozen=True):
    """`heard_s`: Unix time of the heartbeat. `standing`: by tier."""

    edge: str
    heard_s: float
    standing: tuple[StandingReport, ...]

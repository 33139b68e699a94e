"""What `tradewind ladder` prints, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from control_plane.admin.errors import AdminError
from control_plane.cli.output import ago, line, table_lines, when
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import membership_pb2

_HEADINGS = ("EDGE", "TIER", "STANDS AT", "SINCE", "PRESSURE", "LATELY, PER S", "WHY")
_NAMED = 10  # edges in a note


def lines_of(found: pb.LadderResponse) -> list[str]:
    """The table."""
    rows = [
        (
            _edge(edge.node),
            standing.tier,
            standing.quality,
            ago(standing.since_s, found.now_s),
            f"{standing.pressure:.2f}",
            _recent(standing),
            standing.why,
        )
        for edge in found.edges
        for standing in edge.standing
    ]
    return table_lines(_HEADINGS, rows) if rows else ["no edge has told where it stands"]


def notes_of(found: pb.LadderResponse, errors: Sequence[AdminError]) -> list[str]:
    """What the table lacks, and why."""
    notes = [f"note: a replica was not heard: {line(error.message)}" for error in errors]
    if found.unheard:
        more = f" and {len(found.unheard) - _NAMED} more" if len(found.unheard) > _NAMED else ""
        whom = "any replica that answered" if errors else "any replica that was asked"
        notes.append(f"note: not heard by {whom}: {', '.join(found.unheard[:_NAMED])}{more}")
    if found.omitted:
        notes.append(f"note: {found.omitted} nodes are left out for length: ask for one --edge")
    return notes


def as_data(found: pb.LadderResponse, errors: Sequence[AdminError]) -> dict[str, Any]:
    """As `-o json` prints it."""
    return {
        "now_s": found.now_s,
        "edges": [
            {
                "edge": edge.node.split("/")[1],
                "node": edge.node,
                "heard_s": edge.heard_s,
                "standing": [
                    {
                        "tier": standing.tier,
                        "quality": standing.quality,
                        "since_s": standing.since_s or None,
                        "pressure": standing.pressure,
                        "why": standing.why,
                        "recent_per_s": dict(sorted(standing.recent.items())),
                    }
                    for standing in edge.standing
                ],
            }
            for edge in found.edges
        ],
        "unheard": list(found.unheard),
        "omitted": found.omitted,
        "unreachable": [error.message for error in errors],
    }


class News:
    """Off a terminal: the table as it is at the beginning, then what changes, each once."""

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str], str] | None = None

    def of(self, found: pb.LadderResponse, errors: Sequence[AdminError]) -> Iterator[str]:
        """What is to be said of this answer."""
        stands = {
            (edge.node, standing.tier): standing
            for edge in found.edges
            for standing in edge.standing
        }
        shown = self._shown
        if shown is None:
            yield from (*lines_of(found), *notes_of(found, errors))
            shown = {key: standing.quality for key, standing in stands.items()}
        for key, standing in sorted(stands.items(), key=lambda pair: pair[0]):
            before = shown.get(key, "unknown")
            if standing.quality != before:
                at = when(standing.since_s)
                way = f"{standing.tier}: {before} -> {standing.quality}"
                yield line(f"{at} {_edge(key[0])} {way}: {standing.why}")
        self._shown = {key: standing.quality for key, standing in stands.items()}


def _recent(standing: membership_pb2.Standing) -> str:
    known = sorted(standing.recent.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{quality} {rate:.3g}" for quality, rate in known)


def _edge(node: str) -> str:
    return node.partition("/")[2]

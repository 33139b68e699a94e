"""Where edges stand on the degradation ladder, as their workers told this replica. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from control_plane.admin.edge_paths import known
from control_plane.membership.ladder import NodeLadder
from topology.snapshot import Snapshot
from topology.wire import ladder_reports
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

_BYTES_MAX = 2 * 2**20  # of an answer; one node more may follow


def answer(
    snapshot: Snapshot, heard: Mapping[str, NodeLadder], edge: str, now_s: float
) -> pb.LadderResponse:
    """What `tradewind ladder` shows. Raises `UnknownName`."""
    known(edge, snapshot.edges, "EdgeSite")
    response = pb.LadderResponse(now_s=now_s)
    size = 0
    for node, told in sorted(heard.items()):
        if edge and told.edge != edge:
            continue
        if size > _BYTES_MAX:
            response.omitted += 1
            continue
        response.edges.add(
            node=node,
            heard_s=told.heard_s,
            standing=ladder_reports.to_standings(told.standing),
        )
        size += response.edges[-1].ByteSize()
    there = {told.edge for told in heard.values()}
    response.unheard.extend(
        name for name in sorted(snapshot.edges) if name not in there and edge in ("", name)
    )
    return response

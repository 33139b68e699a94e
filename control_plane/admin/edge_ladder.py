"""Where edges stand on the degradation ladder, as their workers told this replica. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from control_plane.admin.edge_paths import fill, known
from control_plane.membership.ladder import NodeLadder
from topology.snapshot import Snapshot
from topology.wire import ladder_reports
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb


def answer(
    snapshot: Snapshot, heard: Mapping[str, NodeLadder], edge: str, now_s: float
) -> pb.LadderResponse:
    """What `tradewind ladder` shows. Raises `UnknownName`."""
    known(edge, snapshot.edges, "EdgeSite")
    response = pb.LadderResponse(now_s=now_s)

    def add(node: str, told: NodeLadder) -> None:
        standing = ladder_reports.to_standings(told.standing)
        response.edges.add(node=node, heard_s=told.heard_s, standing=standing)

    fill(response, snapshot, heard, edge, add)
    return response

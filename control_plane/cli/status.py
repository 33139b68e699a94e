"""Show the control plane: its store, its replicas, and which node has applied what."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from control_plane.admin.errors import AdminError
from control_plane.cli import exits, options
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.output import ago, bad, print_data, print_table, when
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def status(
    ctx: typer.Context,
    gone: Annotated[bool, typer.Option("--gone", help="Also nodes that have left.")] = False,
    output: options.Output = Format.TABLE,
) -> None:
    """Show every replica, whether it reaches the store, and every node with what it has applied.

    Exits with 5 where no replica answers.

    \b
    Examples:
      tradewind status
      tradewind status --gone -o json
    """
    with connect(ctx) as client:
        found = client.statuses()
    replicas = {endpoint: s for endpoint, s in found if not isinstance(s, AdminError)}
    errors = {endpoint: s for endpoint, s in found if isinstance(s, AdminError)}
    if not replicas:
        raise next(iter(errors.values()))
    nodes = _nodes(list(replicas.values()), gone)
    if output is not Format.TABLE:
        print_data(_as_data(replicas, errors, nodes), output)
    else:
        _print_replicas(replicas, errors)
        typer.echo()
        _print_nodes(nodes, max(s.revision for s in replicas.values()))
    if any(error.code == "denied" for error in errors.values()):
        raise typer.Exit(exits.DENIED)


def _nodes(
    statuses: list[pb.StatusResponse], gone: bool
) -> list[tuple[pb.NodeStatus, pb.StatusResponse]]:
    """Each node once: where it is connected, or where it was last."""
    best: dict[str, tuple[pb.NodeStatus, pb.StatusResponse]] = {}
    for status_ in statuses:
        for node in status_.nodes:
            held = best.get(node.id)
            rank = (node.connected, node.since_s)
            if held is None or rank > (held[0].connected, held[0].since_s):
                best[node.id] = (node, status_)
    return [best[name] for name in sorted(best) if gone or best[name][0].connected]


def _print_replicas(replicas: dict[str, pb.StatusResponse], errors: dict[str, AdminError]) -> None:
    rows: list[tuple[object, ...]] = []
    for endpoint, s in replicas.items():
        store = f"up since {when(s.store.since_s)}"
        if not s.store.available:
            store = f"AWAY since {when(s.store.since_s)}"
        snapshot = f"stale since {when(s.stale_since_s)}" if s.stale_since_s else "fresh"
        rows.append((s.replica, endpoint, s.revision, snapshot, store, s.store.detail))
    rows += [("?", endpoint, "-", "-", "-", error.message) for endpoint, error in errors.items()]
    print_table(("REPLICA", "ENDPOINT", "REVISION", "SNAPSHOT", "STORE", "DETAIL"), rows)
    for problem in sorted({p for s in replicas.values() for p in s.problems}):
        typer.echo(bad(f"problem: {problem}"))


def _print_nodes(nodes: list[tuple[pb.NodeStatus, pb.StatusResponse]], newest: int) -> None:
    if not nodes:
        typer.echo("no node is connected")
        return
    rows = []
    for node, status_ in nodes:
        since = ago(node.since_s, status_.now_s)
        state = f"connected {since}" if node.connected else f"gone {since}"
        rows.append((node.id, state, status_.replica, node.acked_revision, _applied(node, newest)))
    print_table(("NODE", "STATE", "REPLICA", "ACKED", "APPLIED"), rows)


def _applied(node: pb.NodeStatus, newest: int) -> str:
    if node.nack_revision:
        return f"REFUSED {node.nack_revision}: {' '.join(node.nack_reason.split())}"
    if node.unsupported:
        return f"asked for {', '.join(node.unsupported)}: not served here"
    if node.acked_revision >= newest:
        return "newest"
    return f"behind; unanswered for {node.lag_s:.1f} s" if node.lag_s else "behind"


def _as_data(
    replicas: dict[str, pb.StatusResponse],
    errors: dict[str, AdminError],
    nodes: list[tuple[pb.NodeStatus, pb.StatusResponse]],
) -> dict[str, Any]:
    return {
        "replicas": [
            {
                "replica": s.replica,
                "endpoint": endpoint,
                "revision": s.revision,
                "stale_since_s": s.stale_since_s or None,
                "started_s": s.started_s,
                "store": {
                    "available": s.store.available,
                    "since_s": s.store.since_s,
                    "detail": s.store.detail,
                },
                "problems": list(s.problems),
            }
            for endpoint, s in replicas.items()
        ],
        "unreachable": [
            {"endpoint": endpoint, "error": error.message} for endpoint, error in errors.items()
        ],
        "nodes": [_node_data(node, status_.replica) for node, status_ in nodes],
    }


def _node_data(node: pb.NodeStatus, replica: str) -> dict[str, Any]:
    nack = None
    if node.nack_revision:
        nack = {"revision": node.nack_revision, "reason": node.nack_reason, "at_s": node.nack_s}
    return {
        "id": node.id,
        "role": node.role,
        "replica": replica,
        "connected": node.connected,
        "since_s": node.since_s,
        "acked_revision": node.acked_revision,
        "sent_revision": node.sent_revision,
        "lag_s": node.lag_s,
        "nack": nack,
        "unsupported": list(node.unsupported),
    }

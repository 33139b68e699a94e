"""Show the control plane: its store, its replicas, and which node has applied what."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.admin.errors import AdminError
from control_plane.cli import exits, options, status_data, status_view
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.output import print_data
from control_plane.cli.status_data import Found
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def status(
    ctx: typer.Context,
    gone: Annotated[bool, typer.Option("--gone", help="Also nodes that have left.")] = False,
    output: options.Output = Format.TABLE,
) -> None:
    """Show every replica, the director, the store, the registry, regions, and every node with what
    it has applied.

    Every replica is asked, and what the others know is shown where some are down. Exits with 5
    where no replica answers.

    \b
    Examples:
      tradewind status
      tradewind status --gone -o json
    """
    with connect(ctx) as client:
        told = client.statuses()
    replicas = {endpoint: s for endpoint, s in told if not isinstance(s, AdminError)}
    errors = {endpoint: s for endpoint, s in told if isinstance(s, AdminError)}
    if not replicas:
        raise next(iter(errors.values()))
    found = Found(replicas, errors, _nodes(list(replicas.values()), gone))
    if output is not Format.TABLE:
        print_data(status_data.as_data(found), output)
    else:
        status_view.show(found)
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

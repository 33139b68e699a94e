"""Wait until every connected node has taken up a revision, and say which have not."""

from __future__ import annotations

import threading

import typer
from msgspec import Struct

from control_plane.admin.client import AdminClient
from control_plane.admin.errors import AdminError
from control_plane.cli import exits
from control_plane.cli.options import Format
from control_plane.cli.output import good, spinner
from control_plane.cli.plan_view import differs, show
from runtime.clock import SystemClock
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

_POLL_S = 0.2


class Progress(Struct, frozen=True):
    """Where the connected nodes are, over all replicas that answer."""

    done: tuple[str, ...]
    behind: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]  # node, why
    silent: tuple[str, ...]  # replicas that did not answer
    later: tuple[str, ...] = ()  # those that a rollout has yet to reach


def progress(client: AdminClient, revision: int, *, staged: bool = False) -> Progress:
    """Ask every replica once. A node that moved counts where it is connected. `staged`: the
    change is rolled out in stages, so that not every node is to have it now."""
    nodes: dict[str, pb.NodeStatus] = {}
    silent = []
    for endpoint, status in client.statuses():
        if isinstance(status, AdminError):
            silent.append(endpoint)
            continue
        for node in filter(lambda n: n.connected, status.nodes):
            held = nodes.get(node.id)
            # A replica that has not noticed yet that a node is gone knows it from earlier.
            if held is None or node.since_s > held.since_s:
                nodes[node.id] = node
    later = {n.id for n in nodes.values() if staged and n.staged}
    due = [n for n in nodes.values() if n.id not in later]
    done = [n.id for n in due if n.acked_revision >= revision]
    refused = [(n.id, n.nack_reason) for n in due if n.acked_revision < revision <= n.nack_revision]
    out = {*done, *(name for name, _ in refused)}
    behind = [n.id for n in due if n.id not in out]
    return Progress(
        tuple(sorted(done)),
        tuple(sorted(behind)),
        tuple(sorted(refused)),
        tuple(silent),
        tuple(sorted(later)),
    )


def finish(
    client: AdminClient,
    response: pb.ApplyResponse,
    output: Format,
    *,
    dry_run: bool,
    wait: bool,
    timeout_s: float,
) -> None:
    """Show what came of a change, or would, and `wait` until the nodes have it."""
    show(response, output, dry_run=dry_run)
    if wait and not dry_run and differs(response):
        wait_for_nodes(
            client,
            response.revision,
            timeout_s,
            staged=response.staged,
            quiet=output is not Format.TABLE,
        )


def wait_for_nodes(
    client: AdminClient,
    revision: int,
    timeout_s: float,
    *,
    staged: bool = False,
    quiet: bool = False,
) -> None:
    """Return once all connected nodes acknowledged; raises `typer.Exit(NOT_EVERYWHERE)`.

    `staged`: those that a rollout has yet to reach are not waited for. `quiet`: stdout is for
    something else.
    """
    clock, pause = SystemClock(), threading.Event()
    started = clock.now()
    with spinner(f"waiting until every node has revision {revision}"):
        while True:
            at = progress(client, revision, staged=staged)
            if not at.behind or clock.now() - started > timeout_s:
                break
            pause.wait(_POLL_S)
    for endpoint in at.silent:
        typer.echo(f"warning: {endpoint} does not answer; its nodes are not counted", err=True)
    for node, reason in at.refused:
        typer.echo(f"{node} refused revision {revision} and keeps the old one: {reason}", err=True)
    if at.behind:
        typer.echo(f"not yet after {timeout_s:g} s: {', '.join(at.behind)}", err=True)
        typer.echo("  they will take it up when they can; `tradewind status` shows it", err=True)
    if at.behind or at.refused:
        raise typer.Exit(exits.NOT_EVERYWHERE)
    if at.later:
        told = f"{len(at.done)} nodes have it, {len(at.later)} get it later"
        typer.echo(f"{good(told)}: `tradewind rollout status`", err=quiet)
        return
    if not at.done:
        typer.echo("no node is connected yet", err=quiet)
        return
    took_s = clock.now() - started
    told = good(f"all {len(at.done)} connected nodes have it")
    typer.echo(f"{told} ({took_s:.1f} s)", err=quiet)

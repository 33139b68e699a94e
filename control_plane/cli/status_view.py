"""What `status` prints for people: replicas, who directs, regions, nodes."""

from __future__ import annotations

import typer

from control_plane.cli.output import ago, bad, line, print_table, when
from control_plane.cli.status_data import Found
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb


def show(found: Found) -> None:
    _print_replicas(found)
    _print_services(found)
    if found.freshest.regions:
        typer.echo()
        _print_regions(found.freshest)
    typer.echo()
    _print_nodes(found)
    _print_members(found)


def _print_replicas(found: Found) -> None:
    rows: list[tuple[object, ...]] = []
    for endpoint, s in found.replicas.items():
        snapshot = f"stale since {when(s.stale_since_s)}" if s.stale_since_s else "fresh"
        store = _up(s.store.available, s.store.since_s)
        rows.append((s.replica, endpoint, s.revision, snapshot, store, s.store.detail))
    rows += [("?", at, "-", "-", "-", error.message) for at, error in found.errors.items()]
    print_table(("REPLICA", "ENDPOINT", "REVISION", "SNAPSHOT", "STORE", "DETAIL"), rows)
    for problem in sorted({p for s in found.replicas.values() for p in s.problems}):
        typer.echo(bad(f"problem: {line(problem)}"))
    if found.not_asked:
        typer.echo(f"alive by the store, and not heard: {', '.join(found.not_asked)}")


def _up(available: bool, since_s: float) -> str:
    return f"{'up' if available else 'AWAY'} since {when(since_s)}"


def _print_services(found: Found) -> None:
    best = found.freshest
    if best.HasField("director"):
        typer.echo(f"director: {_director(best)}")
        for note in best.director.notes:
            typer.echo(f"  note: {line(note)}")
        named = {s.director.replica for s in found.replicas.values() if s.store.available}
        if len(named) > 1:
            told = ", ".join(name or "none" for name in sorted(named))
            typer.echo(bad(f"  replicas do not agree on the director yet: {told}"))
    if best.HasField("registry"):
        told = _up(best.registry.available, best.registry.since_s)
        detail = f" ({line(best.registry.detail)})" if best.registry.detail else ""
        typer.echo(f"registry: {best.registry.backend}, {told}{detail}")
    if best.rollout.exists:
        rollout = best.rollout
        why = f": {line(rollout.why)}" if rollout.why else ""
        typer.echo(
            f"rollout:  change {rollout.number} is {rollout.status} "
            f"at {rollout.percent:g}% of the nodes{why}"
        )


def _director(s: pb.StatusResponse) -> str:
    director = s.director
    decided = f"last decided {ago(director.state_s, s.now_s)} ago" if director.state_s else ""
    if not director.replica:
        held = f"; what was decided holds, {decided}" if decided else ""
        return bad(f"NONE is elected{held}")
    since = when(director.since_s)
    return "; ".join(
        filter(None, (f"{director.replica} (term {director.term}) since {since}", decided))
    )


def _print_regions(s: pb.StatusResponse) -> None:
    rows = []
    for region in s.regions:
        verdict = f"up {ago(region.since_s, s.now_s)}" if region.since_s else "up"
        if not region.up:
            verdict = f"DOWN {ago(region.since_s, s.now_s)}: {region.why}"
        load = f"{region.load_tokens_per_s:,.0f}" if region.load_tokens_per_s >= 0 else "?"
        used = f"{region.utilisation:.0%}" if region.utilisation >= 0 else "?"
        rows.append(
            (
                region.region,
                verdict,
                f"{load} of {region.capacity_tokens_per_s:,.0f}",
                used,
                _override(region),
            )
        )
    print_table(("REGION", "VERDICT", "TOKENS/S", "UTILISATION", "OVERRIDE"), rows)


def _override(region: pb.RegionStatus) -> str:
    if not region.override_action:
        return ""
    told = f"{region.override_action} {region.override_percent:g}%"
    if region.override_percent != region.override_target:
        told += f" of {region.override_target:g}%"
    if region.paused:
        told += f", PAUSED: {region.paused}"
    if region.override_expires_s:
        told += f", until {when(region.override_expires_s)}"
    return told


def _print_nodes(found: Found) -> None:
    if not found.nodes:
        typer.echo("no node is connected")
        return
    rows = []
    for node, s in found.nodes:
        since = ago(node.since_s, s.now_s)
        state = f"connected {since}" if node.connected else f"gone {since}"
        rows.append(
            (
                node.id,
                state,
                s.replica,
                node.acked_revision,
                node.acked_directive or "",
                _applied(node, found.revision),
            )
        )
    print_table(("NODE", "STATE", "REPLICA", "ACKED", "DIRECTIVE", "APPLIED"), rows)


def _applied(node: pb.NodeStatus, newest: int) -> str:
    if node.nack_revision:
        return f"REFUSED {node.nack_revision}: {' '.join(node.nack_reason.split())}"
    if node.directive_nack_s:
        reason = " ".join(node.directive_nack_reason.split())
        return f"REFUSED directive {node.directive_nack}: {reason}"
    if node.unsupported:
        return f"asked for {', '.join(node.unsupported)}: not served here"
    if node.staged:
        return "what was before the rollout"
    if node.acked_revision >= newest:
        return "newest"
    return f"behind; unanswered for {node.lag_s:.1f} s" if node.lag_s else "behind"


def _print_members(found: Found) -> None:
    """Only what the table of nodes does not say: those registered that are not well."""
    connected = {node.id for node, _ in found.nodes if node.connected}
    for member in found.freshest.members:
        if not member.healthy:
            typer.echo(bad(f"{member.node} is registered and not healthy"))
        elif found.nodes and member.node not in connected:
            typer.echo(f"{member.node} is registered and follows no replica that was heard")

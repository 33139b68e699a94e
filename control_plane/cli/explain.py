"""Explain where a client's request would go, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from control_plane.cli import completion, options
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.output import bad, print_data, print_table, when
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def explain(
    ctx: typer.Context,
    tenant: Annotated[
        str, typer.Option(help="The tenant who asks.", autocompletion=completion.tenant)
    ],
    model: Annotated[
        str, typer.Option(help="The model that is asked for.", autocompletion=completion.model)
    ],
    client: Annotated[
        str, typer.Option(help="The client: an address, a subnet, or latitude,longitude.")
    ] = "",
    edge: Annotated[
        str,
        typer.Option(
            help="Instead of --client: begin at this edge.", autocompletion=completion.edge
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="The DNS name asked; the only one if left out.")] = "",
    output: options.Output = Format.TABLE,
) -> None:
    """Explain which edge and which region would serve a request, and what rules out the others.

    It goes by the configuration, what the director told the edge, and what the edge was heard to
    measure. Where requests are shared out, SHARE says how many go to each region first.

    \b
    Examples:
      tradewind explain --client 198.18.4.7 --tenant acme --model smollm2-135m-instruct
      tradewind explain --edge london --tenant eurobank --model smollm2-135m-instruct
      tradewind explain --client 51.5,-0.1 --tenant acme --model smollm2-135m-instruct -o json
    """
    if bool(client) == bool(edge):
        raise typer.BadParameter("say one of --client and --edge")
    request = pb.ExplainRequest(client=client, tenant=tenant, model=model, name=name, edge=edge)
    with connect(ctx) as admin:
        response = admin.explain(request)
    if output is not Format.TABLE:
        print_data(_as_data(response), output)
        return
    _print(response)


def _print(response: pb.ExplainResponse) -> None:
    if response.stale_since_s:
        typer.echo(f"warning: as of {when(response.stale_since_s)}: the store is away", err=True)
    typer.echo(f"client: {response.place}")
    if response.name:
        typer.echo(f"name:   {response.name}")
    typer.echo(f"edge:   {response.edge}")
    if response.region:
        typer.echo(f"region: {response.region} ({response.path})")
        if response.demand_class:
            typer.echo(f"class:  {response.demand_class}")
    else:
        typer.echo(bad(f"region: none: {response.refusal}"))
    typer.echo()
    print_table(("EDGE", "", "WHY"), [(c.name, _mark(c), c.why) for c in response.edges])
    typer.echo()
    rows = [
        (c.name, _mark(c), _share(c), c.path, f"{c.rtt_ms:.0f}" if c.rtt_ms else "", c.why)
        for c in response.regions
    ]
    print_table(("REGION", "", "SHARE", "PATH", "RTT MS", "WHY"), rows)
    for note in response.notes:
        typer.echo(f"note: {note}")


def _mark(candidate: pb.Candidate) -> str:
    if candidate.chosen:
        return "chosen"
    return "not" if candidate.excluded else "next"


def _share(candidate: pb.Candidate) -> str:
    return (
        f"{100 * candidate.share:.3g}%" if candidate.share >= 0 and not candidate.excluded else ""
    )


def _as_data(response: pb.ExplainResponse) -> dict[str, Any]:
    def candidate(c: pb.Candidate) -> dict[str, Any]:
        return {"name": c.name, "state": _mark(c), "why": c.why}

    return {
        "revision": response.revision,
        "stale_since_s": response.stale_since_s or None,
        "place": response.place,
        "name": response.name,
        "edge": response.edge,
        "region": response.region or None,
        "path": response.path or None,
        "refusal": response.refusal or None,
        "edges": [candidate(c) | {"distance_km": c.distance_km} for c in response.edges],
        "regions": [
            candidate(c)
            | {
                "path": c.path or None,
                "rtt_ms": c.rtt_ms or None,
                "share": c.share if c.share >= 0 else None,
            }
            for c in response.regions
        ],
        "demand_class": response.demand_class or None,
        "notes": list(response.notes),
    }

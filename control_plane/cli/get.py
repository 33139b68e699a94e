"""Show what is configured."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from control_plane.cli import completion, options
from control_plane.cli.context import connect
from control_plane.cli.options import Format, kind_named
from control_plane.cli.output import print_data, print_table, when

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_SHOWN = 60


@app.command()
def get(
    ctx: typer.Context,
    kind: Annotated[
        str, typer.Argument(help="A kind; all if left out.", autocompletion=completion.kind)
    ] = "",
    name: Annotated[
        str,
        typer.Argument(help="A name; all if left out.", autocompletion=completion.of_kind),
    ] = "",
    output: options.Output = Format.TABLE,
) -> None:
    """Show resources: all, those of a kind, or one.

    Answered from the replica's snapshot, so it works while the store is away, and says so.

    \b
    Examples:
      tradewind get
      tradewind get regions
      tradewind get Tenant acme -o yaml
    """
    with connect(ctx) as client:
        response = client.get(kind_named(kind) if kind else "", name)
    if response.stale_since_s:
        typer.echo(f"warning: as of {when(response.stale_since_s)}: the store is away", err=True)
    documents = [json.loads(resource.json) for resource in response.resources]
    if output is not Format.TABLE:
        print_data(documents[0] if name else documents, output)
        return
    rows = [
        (d["kind"], d["name"], d["revision"], when(d["time_s"]), d["author"], _short(d["spec"]))
        for d in documents
    ]
    print_table(("KIND", "NAME", "REVISION", "CHANGED", "BY", "SPEC"), rows)


def _short(spec: dict[str, Any]) -> str:
    text = ", ".join(f"{name}={_value(value)}" for name, value in spec.items() if value is not None)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    return "{…}" if isinstance(value, dict) else str(value)

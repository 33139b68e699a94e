"""Show how YAML files differ from what is configured."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.cli import exits, options
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.output import print_data
from control_plane.cli.plan_view import as_data, differs, print_plan
from control_plane.cli.sending import located, read_files, request_of

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def diff(
    ctx: typer.Context,
    file: Annotated[
        list[str], typer.Option("-f", "--file", help="A file, a folder, or - for stdin.")
    ],
    prune: Annotated[
        bool, typer.Option("--prune", help="Count what the files leave out as deleted.")
    ] = False,
    output: options.Output = Format.TABLE,
) -> None:
    """Show, field by field, what `apply` would change. Changes nothing.

    Exits with 0 where nothing differs and with 7 where something does.

    \b
    Examples:
      tradewind diff -f regions.yaml
      tradewind diff -f config/ --prune -o json
    """
    found = read_files(file)
    request = request_of(found)
    request.dry_run, request.prune = True, prune
    with connect(ctx) as client, located(found.origins):
        response = client.apply(request)
    if output is not Format.TABLE:
        print_data(as_data(response), output)
    else:
        print_plan(response)
    if differs(response):
        raise typer.Exit(exits.DIFFERENT)

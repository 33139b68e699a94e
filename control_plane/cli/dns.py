"""Run a geo-DNS server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Run a geo-DNS server.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)


@app.callback()
def _group() -> None:
    """Run a geo-DNS server."""


@app.command()
def run(
    settings: Annotated[Path, typer.Option(help="A YAML file; docs/cli.md shows one.")],
) -> None:
    """Run a geo-DNS server until SIGTERM or SIGINT.

    \b
    Example:
      tradewind dns run --settings dns.yaml
    """
    from control_plane.geodns import service
    from control_plane.geodns.settings import DnsSettings
    from runtime import settings as reading

    service.run(reading.load(DnsSettings, settings))

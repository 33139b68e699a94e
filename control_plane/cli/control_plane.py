"""Run a control-plane replica."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Run a control-plane replica.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback()
def _group() -> None:
    """Run a control-plane replica."""


@app.command()
def run(
    settings: Annotated[Path, typer.Option(help="A YAML file; docs/cli.md shows one.")],
) -> None:
    """Run a replica until SIGTERM or SIGINT: discovery (xDS) and the admin API on one port.

    \b
    Example:
      tradewind control-plane run --settings control.yaml
    """
    import uvloop

    from control_plane import service
    from control_plane.settings import ControlSettings
    from runtime import logs
    from runtime import settings as reading

    loaded = reading.load(ControlSettings, settings)
    logs.configure("control-plane", loaded.log_level)
    uvloop.run(service.run(loaded))

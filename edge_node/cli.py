"""`tradewind edge`: run an edge."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from random import Random
from typing import Annotated

import typer
import uvloop

from edge_node.front.listener import check_free
from edge_node.server import CLOSING_S, run
from edge_node.settings import EdgeSettings
from edge_node.workers import Workers, stop_with_parent
from runtime import logs, settings
from runtime.errors import TradewindError
from runtime.shutdown import Shutdown

app = typer.Typer(help="Run an edge: what clients talk to.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `run` a verb of its own."""


@app.command("run")
def run_edge(
    settings_file: Annotated[
        Path, typer.Option("--settings", help="The edge's settings (YAML).", dir_okay=False)
    ],
    worker: Annotated[
        int | None, typer.Option(help="Be this worker of several.", hidden=True, min=0)
    ] = None,
) -> None:
    """Serve clients until SIGTERM; requests under way are finished first."""
    try:
        loaded = settings.load(EdgeSettings, settings_file)
        name = f"edge-{loaded.name}" + (f"-{worker}" if worker is not None else "")
        logs.configure(name, loaded.log_level)
        if worker is None:
            check_free(loaded.host, loaded.port)
        uvloop.run(_main(loaded, settings_file, worker))
    except TradewindError as error:
        typer.echo(f"tradewind edge run: {error}", err=True)
        raise typer.Exit(2) from error


async def _main(loaded: EdgeSettings, settings_file: Path, worker: int | None) -> None:
    if worker is None and loaded.workers > 1:
        await _several(loaded, settings_file)
        return
    shutdown = Shutdown(loaded.shutdown_grace_ms / 1000 + CLOSING_S)
    watch = None if worker is None else asyncio.create_task(stop_with_parent(shutdown))
    await run(loaded, worker or 0, shutdown)
    if watch is not None:
        watch.cancel()


async def _several(loaded: EdgeSettings, settings_file: Path) -> None:
    stop_s = loaded.shutdown_grace_ms / 1000 + 2 * CLOSING_S
    shutdown = Shutdown(stop_s + CLOSING_S)
    command = (sys.executable, "-m", "edge_node", "run", "--settings", str(settings_file))
    workers = Workers(command, loaded.workers, stop_s, Random())
    workers.start()
    shutdown.add("workers", workers.close)
    await shutdown.wait()

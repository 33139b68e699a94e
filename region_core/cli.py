"""`tradewind core`: run a region core."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from region_core.ingress.listener import check_free
from region_core.process import make_engine, run
from region_core.settings import CoreSettings
from runtime import logs, settings
from runtime.errors import TradewindError
from runtime.identity import Identity

app = typer.Typer(help="Run a region core: what runs the model.", no_args_is_help=True)

# The engine's thread needs the interpreter for some 0.3 ms a step, and should not wait 5 ms for
# it, Python's default, when the event loop is busy.
_SWITCH_S = 0.0005
# What a step makes is gone when it has been handed out, and needs no collector to look at it each
# time: with 500 sequences that was a seventh of the engine thread's time.
_GC_THRESHOLDS = (20_000, 20, 50)
_EXAMPLES = """
Examples:

  tradewind core run --settings core.yaml

  TRADEWIND_SET_ENGINE=sim tradewind core run --settings core.yaml   # without a model

  TRADEWIND_SET_TORCH__THREADS=1 tradewind core run --settings core.yaml

The least that the settings hold:

  region: frankfurt
  identity: {certificate: core.crt, key: core.key, ca: ca.crt}
  overlay: {host: 0.0.0.0, port: 4433}
  http: {host: 127.0.0.1, port: 8000}
"""


@app.callback()
def _group() -> None:
    """Keeps `run` a verb of its own."""


@app.command("run", epilog=_EXAMPLES.replace("\n\n", "\n\n\b\n"))
def run_core(
    settings_file: Annotated[
        Path, typer.Option("--settings", help="The core's settings (YAML).", dir_okay=False)
    ],
) -> None:
    """Serve requests until SIGTERM; those under way are finished first."""
    try:
        loaded = settings.load(CoreSettings, settings_file)
        logs.configure(f"core-{loaded.display_name}", loaded.log_level)
        Identity.load(loaded.identity)  # its mistakes are said before seconds go into the engine
        if loaded.http is not None:
            check_free(loaded.http.host, loaded.http.port)
        engine = make_engine(loaded)
        gc.collect()
        gc.freeze()  # what was made by starting never becomes garbage
        gc.set_threshold(*_GC_THRESHOLDS)
        sys.setswitchinterval(_SWITCH_S)
        uvloop.run(run(loaded, engine))
    except TradewindError as error:
        typer.echo(f"tradewind core run: {error}", err=True)
        raise typer.Exit(2) from error

"""`python -m lab.wan --settings FILE`: emulate the links of a settings file until SIGTERM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from lab.wan.control import serve
from lab.wan.emulator import Wan
from lab.wan.figures import WanSettings
from runtime import logs, settings
from runtime.errors import TradewindError
from runtime.shutdown import Shutdown

log = logs.get("wan")


async def _run(wanted: WanSettings) -> None:
    wan = Wan(wanted)
    shutdown = Shutdown()

    async def close() -> None:
        for name, relay in wan.relays.items():
            for way, direction in (("out", relay.out), ("back", relay.back)):
                counted = direction.counters
                log.info(
                    "link", link=name, direction=way, sent=counted.sent,
                    delivered=counted.delivered, lost=counted.lost, cut=counted.cut,
                    overflowed=counted.overflowed, refused=counted.refused,
                )  # fmt: skip
        wan.close()

    shutdown.add("links", close)
    if wanted.control is not None:
        server = await serve(wanted.control, wan)

        async def close_control() -> None:
            server.close()

        shutdown.add("control", close_control)
    log.info("links up", links=len(wan.relays))
    await shutdown.wait()


def main(
    settings_file: Annotated[Path, typer.Option("--settings", help="The links, in YAML.")],
) -> None:
    """Emulate the links of a settings file until SIGTERM."""
    logs.configure("wan")
    try:
        uvloop.run(_run(settings.load(WanSettings, settings_file)))
    except TradewindError as error:
        print(f"lab.wan: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)

"""`tradewind storm`: the incident, compressed in time, and what became of it."""

from __future__ import annotations

import asyncio
import signal
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console

from lab.cli import WIDTH_IN_A_LOG, EngineName, OutputForm, require_writable
from lab.storm import stage
from lab.storm.event import Event, Population
from lab.storm.report import Report, met
from lab.storm.stages import PROTECTED, UNPROTECTED, VIA, Storm, Wanted
from lab.storm.view import Lines, Picture, show
from lab.world import REGIONS
from runtime.errors import TradewindError

app = typer.Typer(
    help="The storm: normal load, then 15 times as much, with clients that send again.",
    invoke_without_command=True,
)
EXAMPLES = """
[bold]Examples[/bold]

  tradewind storm                             protected, then unprotected, side by side

  tradewind storm --report storm.json         and storm.png and storm.html beside it

  tradewind storm --only unprotected          the naive service alone

  tradewind storm --kill etcd                 all of etcd dies at the peak

  tradewind storm --kill region=singapore     a region dies at the peak

  tradewind storm --peers all                 and the same through Envoy and others

  tradewind storm --via http://127.0.0.1:9000 and the same through a proxy of yours

  tradewind storm --sweep                     goodput from 0.5 to 15 times the normal load
"""


@app.callback(epilog=EXAMPLES)
def storm(
    report: Annotated[
        Path | None, typer.Option(help="Write everything here as JSON; plots beside it.")
    ] = None,
    only: Annotated[str, typer.Option(help="protected or unprotected: one of the two runs.")] = "",
    unprotected: Annotated[
        bool, typer.Option("--unprotected", help="The same as --only unprotected.")
    ] = False,
    via: Annotated[
        str, typer.Option(help="Also run the clients through a proxy that listens at this URL.")
    ] = "",
    peers: Annotated[
        str, typer.Option(help="Also run them through these: names with commas between, or all.")
    ] = "",
    kill: Annotated[str, typer.Option(help="Kill this at the peak: etcd, or region=NAME.")] = "",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also measure goodput from 0.5 to 15 times the load.")
    ] = False,
    scale: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Of all rates, and of the cores' capacity.")
    ] = stage.SCALE,
    duration: Annotated[
        float, typer.Option(min=4.0, max=600.0, help="Seconds that the event lasts.")
    ] = 40.0,
    baseline: Annotated[
        float, typer.Option(min=2.0, max=600.0, help="Seconds of normal load before it.")
    ] = 15.0,
    engine: Annotated[
        EngineName, typer.Option(help="sim imitates a GPU's service times; torch runs a model.")
    ] = EngineName.sim,
    seed: Annotated[int, typer.Option(help="Of who asks what and when.")] = 1,
    directory: Annotated[
        Path, typer.Option(help="Settings, certificates, logs and rows go here.")
    ] = Path(".storm"),
    output: Annotated[
        OutputForm, typer.Option("--output", "-o", help="table or json.")
    ] = OutputForm.table,
) -> None:
    """Replay the incident against a whole world on this machine, and say what became of it.

    Ends with status 0 only when the protected run was what it must be.
    """
    runs = _runs(only, unprotected, via)
    wanted = Wanted(
        directory=directory.resolve(),
        event=Event(scale=scale, duration_s=duration, baseline_s=baseline),
        population=Population() if engine is EngineName.sim else stage.small(Population()),
        engine=engine.value,
        seed=seed,
        runs=runs,
        via=_checked_url(via),
        peers=_peers(peers),
        kill=_killed(kill),
        sweep=sweep,
    )
    require_writable(report)
    out = Console(
        width=None if sys.stdout.isatty() else WIDTH_IN_A_LOG,
        stderr=output is OutputForm.json,
    )
    found = _run(out, wanted)
    if report is not None:
        _write(out, report, found)
    if output is OutputForm.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(out, found)
    protected = found.runs.get(PROTECTED)
    raise typer.Exit(0 if protected is None or met(protected) else 1)


def _runs(only: str, unprotected: bool, via: str) -> tuple[str, ...]:
    if only not in ("", PROTECTED, UNPROTECTED):
        raise typer.BadParameter("protected or unprotected", param_hint="--only")
    if unprotected and only == PROTECTED:
        raise typer.BadParameter("--only unprotected or nothing", param_hint="--unprotected")
    if unprotected or only == UNPROTECTED:
        return (UNPROTECTED,)
    chosen = (PROTECTED,) if only == PROTECTED else (PROTECTED, UNPROTECTED)
    return (*chosen, VIA) if via else chosen


def _checked_url(via: str) -> str:
    if not via:
        return via
    try:
        url = urlsplit(via)
        good = url.scheme == "http" and _is_here(url.hostname) and url.port != 0
    except ValueError:  # no port
        good = False
    if not good:
        raise typer.BadParameter(
            "an URL of this machine (127.0.0.0/8), such as http://127.0.0.1:9000",
            param_hint="--via",
        )
    return via


def _is_here(host: str | None) -> bool:
    """Whether it is this machine: nobody else is sent a storm. Raises `ValueError` for a name."""
    return host == "localhost" or (bool(host) and ip_address(host or "").is_loopback)


def _peers(names: str) -> tuple[str, ...]:
    if not names:
        return ()
    from lab.storm.peers import PEERS

    if names == "all":
        return tuple(PEERS)
    chosen = tuple(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in PEERS:
            raise typer.BadParameter(
                f"{name!r}: there are {', '.join(PEERS)}", param_hint="--peers"
            )
    return chosen


def _killed(kill: str) -> str:
    """The process of the lab that is meant."""
    regions = {region.name for region in REGIONS}
    what, _, name = kill.partition("=")
    if kill in ("", "etcd"):
        return kill
    if what == "region" and name in regions:
        return f"core-{name}"
    raise typer.BadParameter(
        f"etcd, or region= and one of {', '.join(sorted(regions))}", param_hint="--kill"
    )


def _run(console: Console, wanted: Wanted) -> Report:
    try:
        return asyncio.run(_main(console, wanted))
    except TradewindError as error:
        console.print(f"tradewind storm: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(2) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped")
        raise typer.Exit(130) from None


async def _main(console: Console, wanted: Wanted) -> Report:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with Picture(console) if console.is_terminal else Lines(console) as view:
        held = Storm(wanted, view)
        await held.run()
        return held.report()


def _write(console: Console, report: Path, found: Report) -> None:
    from lab.storm.plots import draw  # matplotlib takes a second to load

    report.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))
    written = draw(found, report)
    names = ", ".join(str(path) for path in (report, *written))
    console.print(f"written: {names}", highlight=False, markup=False)

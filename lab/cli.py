"""`tradewind lab`: the whole world on one machine."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from lab.bring_up import Lab
from lab.clients import Client
from lab.control import Order
from lab.control import send as send_order
from lab.control import serve as serve_control
from lab.report import Report, failover, totals
from lab.story import DEPOSED, DRAINED, DRAINED_NOW, DRAINING, KILLED, KILLED_NOW, Story
from lab.view import LinesView, LiveView, show_report
from lab.wan import cli as wan_cli
from lab.world import CLIENT_CITIES, DNS_PORT, EDGES, LONDON, MODEL, SERVICE, TENANTS
from runtime.errors import TradewindError

app = typer.Typer(
    help="The whole world on one machine: etcd, control plane, DNS, edges, cores, clients.",
    invoke_without_command=True,
    subcommand_metavar="[ps|kill|start|wan]",
)
app.add_typer(wan_cli.app, name="wan")

WIDTH_IN_A_LOG = 150
EXAMPLES = """
[bold]Examples[/bold]

  tradewind lab                            watch it, about a minute

  tradewind lab --engine sim               the same with a simulated engine

  tradewind lab --report report.json       and write what was seen

  tradewind lab --serve                    keep it up, and be told how to use it
"""


class EngineName(StrEnum):
    """Which engine the cores run."""

    torch = "torch"
    sim = "sim"


class OutputForm(StrEnum):
    """How to print."""

    table = "table"
    json = "json"


@app.callback(epilog=EXAMPLES)
def lab(
    ctx: typer.Context,
    engine: Annotated[
        EngineName, typer.Option(help="torch runs the real model; sim imitates service times.")
    ] = EngineName.torch,
    report: Annotated[
        Path | None, typer.Option(help="Write requests, failovers and totals here, as JSON.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Keep everything up to explore; Ctrl-C stops it.")
    ] = False,
    directory: Annotated[
        Path, typer.Option(help="Settings, certificates, logs and state go here.")
    ] = Path(".lab"),
) -> None:
    """Start everything and tell the story; or, with --serve, keep it up."""
    ctx.obj = directory.resolve()
    if ctx.invoked_subcommand is not None:
        return
    require_writable(report)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_IN_A_LOG)
    if engine is EngineName.sim:
        console.print("[yellow]Engine: sim. Answers and service times are simulated.[/yellow]")
    try:
        found = asyncio.run(_main(console, engine.value, serve, directory.resolve()))
    except TradewindError as error:
        console.print(f"tradewind lab: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped")
        raise typer.Exit(130) from None
    if found is None:
        return
    show_report(console, found)
    if report is not None:
        report.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))
        console.print(f"report written to {report}", highlight=False)
    raise typer.Exit(1 if found.totals.failed else 0)


def require_writable(report: Path | None) -> None:
    """Say before the run, not after it, that its report will have no place."""
    if report is None:
        return
    try:
        report.open("ab").close()
    except OSError as error:
        raise typer.BadParameter(
            f"cannot write {report}: {error.strerror}", param_hint="--report"
        ) from error


async def _main(console: Console, engine: str, serve: bool, directory: Path) -> Report | None:
    """Run it and return what was seen; None after --serve, which runs until it is stopped."""
    _cancel_on_signals()
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    view = LiveView(console) if console.is_terminal else LinesView(console)
    world = Lab(directory, engine, console.print if serve else view.step)
    try:
        if serve:
            await world.start()
            _show_how(console, world)
            await _watch(console, world)
            return None
        with view:
            await world.start()
            ready_s = loop.time()
            story = _story(world, view, lambda: loop.time() - ready_s)
            await story.run()
        return _report(world, story, ready_s - started_s, loop.time() - ready_s)
    finally:
        await world.stop()


def _cancel_on_signals() -> None:
    """SIGINT is named too: started in the background by a shell, a process ignores it."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _story(world: Lab, view: LiveView | LinesView, now: Callable[[], float]) -> Story:
    clients = [
        Client(city, tenant.name, world.keys[tenant.name], index, now)
        for index, city in enumerate(CLIENT_CITIES)
        for tenant in (TENANTS[index % len(TENANTS)],)
    ]
    return Story(
        clients,
        drain=lambda: world.drain(DRAINED),
        depose=world.depose,
        kill=lambda: world.kill_etcd_and_core(KILLED),
        audience=view,
        now=now,
    )


def _report(world: Lab, story: Story, setup_s: float, duration_s: float) -> Report:
    seen, began = tuple(story.outcomes), story.began_s
    drain_s, drained_s, kill_s = began[DRAINING], began[DRAINED_NOW], began[KILLED_NOW]
    assert world.takeover is not None  # the story has told of it
    return Report(
        engine=world.engine,
        requests=seen,
        drain=failover(DRAINED, drain_s, drained_s, began[DEPOSED], seen),
        director=world.takeover,
        kill=failover(KILLED, kill_s, kill_s, duration_s, seen),
        totals=totals(seen, world.memory_mb()),
        setup_s=round(setup_s, 1),
        duration_s=round(duration_s, 1),
    )


async def _watch(console: Console, world: Lab) -> None:
    """Stay until stopped, obey `tradewind lab kill|start`, and say so when a process ends."""
    server = await serve_control(world.directory, world.obey)
    gone: set[str] = set()
    try:
        while True:
            for name, child in world.supervisor.children.items():
                if not child.running and name not in gone:
                    status = f"{name} ended with status {child.process.returncode}"
                    again = f"start it again with `tradewind lab start {name}`"
                    console.print(f"{status}; {again}", highlight=False, markup=False)
            gone = {n for n, c in world.supervisor.children.items() if not c.running}
            await asyncio.sleep(0.5)
    finally:
        server.close()


def _show_how(console: Console, world: Lab) -> None:
    """How to use a lab that stays up, ready to paste."""
    edge = next(edge for edge in EDGES if edge.city is LONDON)
    key = world.keys["acme"]
    context = world.directory / "context.yaml"
    client = LONDON.client_address
    body = (
        f'{{"model":"{MODEL}","messages":[{{"role":"user",'
        '"content":"What is the capital of Germany?"}]}'
    )
    lines = (
        "",
        "The lab is up. From another terminal:",
        f"  export TRADEWIND_CONTEXT={context} KEY={key}",
        f"  dig @127.0.0.1 -p {DNS_PORT} {SERVICE} +subnet={LONDON.subnet}",
        f"  curl -s {edge.url}/v1/chat/completions -H \"Authorization: Bearer $KEY\" -d '{body}'",
        "  .venv/bin/tradewind status",
        f"  .venv/bin/tradewind explain --client {client} --tenant acme --model {MODEL}",
        "  .venv/bin/tradewind region drain frankfurt --reason 'trying it out'",
        "  .venv/bin/tradewind region restore frankfurt --reason 'done'",
        "Break things, and mend them (`ps` lists all names):",
        "  .venv/bin/tradewind lab kill etcd          # or etcd-1, core-singapore, cp-1, dns, …",
        "  .venv/bin/tradewind lab start etcd",
        "  .venv/bin/tradewind lab wan cut london-frankfurt --for 20s    # or set, flap; `wan ls`",
        "  .venv/bin/tradewind paths --edge london    # what the edge makes of it",
        "With the openai package:",
        f"  openai.OpenAI(base_url='{edge.url}/v1', api_key='$KEY')",
        f"Keys of all tenants: {world.directory / 'keys.json'}; logs: {world.directory / 'logs'}.",
        "Ctrl-C stops everything.",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


Name = Annotated[str, typer.Argument(help="A process that `ps` lists, or `etcd` for all of it.")]


Output = Annotated[OutputForm, typer.Option("--output", "-o", help="table or json.")]


@app.command()
def ps(ctx: typer.Context, output: Output = OutputForm.table) -> None:
    """List the processes of the lab that is up."""
    _order(ctx, Order("ps"), output)


@app.command()
def kill(ctx: typer.Context, name: Name) -> None:
    """Kill a process with SIGKILL, as a crash would. Example: `tradewind lab kill etcd`."""
    _order(ctx, Order("kill", name))


@app.command()
def start(ctx: typer.Context, name: Name) -> None:
    """Start a process that was killed. Example: `tradewind lab start core-singapore`."""
    _order(ctx, Order("start", name))


def _order(ctx: typer.Context, order: Order, output: OutputForm = OutputForm.table) -> None:
    console = Console()
    try:
        answer = asyncio.run(send_order(ctx.obj, order))
    except TradewindError as error:
        console.print(f"tradewind lab: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from error
    if output is OutputForm.json:
        print(msgspec.json.encode(answer.processes).decode())
        return
    table = Table(box=None)
    for heading in ("PROCESS", "PID", "STATE", "MEMORY MB", "LOG"):
        table.add_column(heading, no_wrap=True)
    for state in answer.processes:
        running = "running" if state.running else "ended"
        pid = str(state.pid) if state.running else "-"
        table.add_row(state.name, pid, running, f"{state.memory_mb:.0f}", state.log)
    console.print(table)

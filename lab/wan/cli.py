"""`tradewind lab wan`: change the links of a lab that is up, and watch them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from control_plane.cli.output import print_table
from lab.errors import LabError
from lab.wan import units
from lab.wan.control import SOCKET, Answer, LinkState, WanControl
from lab.wan.view import HEADINGS, RATE, rows

_EPILOG = """
[bold]Examples[/bold]

  tradewind lab wan ls --watch

  tradewind lab wan set tokyo-singapore --rtt 200ms --jitter 5ms --loss 30% --direction out

  tradewind lab wan set 'tokyo-*' 'london-*' --bandwidth 10mbit --for 30s

  tradewind lab wan cut '*-singapore' --for 10s

  tradewind lab wan flap london-frankfurt --up 2s --down 500ms

  tradewind lab wan reset

`tradewind paths`, in another terminal, shows what the edges make of it.
"""

app = typer.Typer(
    help="Change the links of a lab that is up: distance, loss, bandwidth, cuts.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=_EPILOG,
)

WATCH_S = 1.0
_PATIENCE_S = 1.0  # of a shell that completes


class Direction(StrEnum):
    """`out`: from the first place in the link's name to the second."""

    out = "out"
    back = "back"
    both = "both"


class Form(StrEnum):
    """How to print."""

    table = "table"
    json = "json"


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of links. None where no lab is up: who is still typing is told of no error."""
    at: Any = ctx
    folder = None
    while at is not None and folder is None:
        folder, at = at.params.get("directory"), at.parent
    control = WanControl(Path(folder or ".lab") / SOCKET)
    try:
        links = asyncio.run(asyncio.wait_for(control.links(), _PATIENCE_S))
    except (LabError, TimeoutError):
        return []
    return [link.name for link in links if link.name.startswith(incomplete)]


def _typed(option: str, parse: Callable[[str], float]) -> Callable[[str | None], str | None]:
    """A callback that says at once when an option's value makes no sense."""

    def check(text: str | None) -> str | None:
        if text is not None:
            try:
                parse(text)
            except ValueError as error:
                raise typer.BadParameter(f"{error}", param_hint=option) from error
        return text

    return check


def _duration(option: str, text: str) -> Any:
    return typer.Option(option, help=text, callback=_typed(option, units.milliseconds))


def _share(option: str, text: str) -> Any:
    return typer.Option(option, help=text, callback=_typed(option, units.share))


Links = Annotated[
    list[str],
    typer.Argument(
        help="Names or patterns: tokyo-singapore, 'tokyo-*', '*-dubai', '*'.",
        autocompletion=_complete,
        metavar="LINK...",
        show_default=False,
    ),
]
Way = Annotated[
    Direction,
    typer.Option("--direction", "-d", help="out: from the first place in the name to the second."),
]
For = Annotated[str | None, _duration("--for", "Undo it after this long: 10s.")]
Output = Annotated[Form, typer.Option("--output", "-o", help="table or json.")]


@app.command()
def ls(
    ctx: typer.Context,
    links: Links = ["*"],  # noqa: B006 - Typer copies it
    output: Output = Form.table,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Look again each second, until Ctrl-C.")
    ] = False,
) -> None:
    """List links: what they are like now, and what became of their packets."""
    if watch:
        _run(_watch(_control(ctx), tuple(links), output))
        return
    _print(_run(_control(ctx).links(tuple(links))), output)


@app.command(name="set", no_args_is_help=True)
def set_(
    ctx: typer.Context,
    links: Links,
    rtt: Annotated[
        str | None, _duration("--rtt", "Round trip: each direction gets half of it. 200ms.")
    ] = None,
    latency: Annotated[str | None, _duration("--latency", "Of one way: 100ms.")] = None,
    jitter: Annotated[str | None, _duration("--jitter", "Added to it, from 0 to this.")] = None,
    loss: Annotated[str | None, _share("--loss", "Of packets, by chance: 30%.")] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            help="10mbit, 64kbit, unlimited.", callback=_typed("--bandwidth", units.bandwidth)
        ),
    ] = None,
    queue: Annotated[
        str | None, _duration("--queue", "What may wait for the wire, in time on it: 100ms.")
    ] = None,
    duplicate: Annotated[str | None, _share("--duplicate", "Of packets: 1%.")] = None,
    reorder: Annotated[str | None, _share("--reorder", "Of packets: 1%.")] = None,
    direction: Way = Direction.both,
    for_: For = None,
    output: Output = Form.table,
) -> None:
    """Set figures of links; what is not named stays as it is."""
    wanted: list[tuple[str, str | None, Callable[[str], float]]] = [
        ("rtt_ms", rtt, units.milliseconds),
        ("latency_ms", latency, units.milliseconds),
        ("jitter_ms", jitter, units.milliseconds),
        ("loss", loss, units.share),
        ("bandwidth_bit_per_s", bandwidth, units.bandwidth),
        ("queue_ms", queue, units.milliseconds),
        ("duplicate", duplicate, units.share),
        ("reorder", reorder, units.share),
    ]
    figures = {name: parse(text) for name, text, parse in wanted if text is not None}
    if not figures:
        raise typer.BadParameter("name at least one figure: --rtt, --loss, --bandwidth, …")
    _change(ctx, links, direction, for_, output, **figures)


@app.command(no_args_is_help=True)
def cut(
    ctx: typer.Context,
    links: Links,
    direction: Way = Direction.both,
    for_: For = None,
    output: Output = Form.table,
) -> None:
    """Let nothing through, and tell nobody."""
    _change(ctx, links, direction, for_, output, cut=True)


@app.command(no_args_is_help=True)
def mend(
    ctx: typer.Context,
    links: Links,
    direction: Way = Direction.both,
    output: Output = Form.table,
) -> None:
    """End a cut, or flapping; other figures stay."""
    _change(ctx, links, direction, None, output, cut=False, flap=None)


@app.command(no_args_is_help=True)
def flap(
    ctx: typer.Context,
    links: Links,
    up: Annotated[str, _duration("--up", "How long it is up each time.")] = "2s",
    down: Annotated[str, _duration("--down", "How long it is down each time.")] = "500ms",
    random: Annotated[
        bool, typer.Option("--random", help="Random times of these means, from the seed.")
    ] = False,
    direction: Way = Direction.both,
    for_: For = None,
    output: Output = Form.table,
) -> None:
    """Cut and mend in turn."""
    times = {"up_ms": units.milliseconds(up), "down_ms": units.milliseconds(down)}
    _change(ctx, links, direction, for_, output, flap=times | {"random": random})


@app.command()
def reset(
    ctx: typer.Context,
    links: Links = ["*"],  # noqa: B006 - Typer copies it
    direction: Way = Direction.both,
    output: Output = Form.table,
) -> None:
    """Make links (all, if none is named) what they were when the lab started."""
    answer = _run(_control(ctx).reset(tuple(links), direction.value))
    _print(answer.links, output)


def _control(ctx: typer.Context) -> WanControl:
    return WanControl(Path(ctx.obj or ".lab") / SOCKET)


def _change(
    ctx: typer.Context,
    links: list[str],
    direction: Direction,
    for_: str | None,
    output: Form,
    **figures: Any,
) -> None:
    for_ms = units.milliseconds(for_) if for_ is not None else 0.0
    if for_ is not None and for_ms == 0:
        raise typer.BadParameter("nothing lasts for 0", param_hint="--for")
    control = _control(ctx)
    answer: Answer = _run(control.set(tuple(links), direction.value, for_ms=for_ms, **figures))
    _print(answer.links, output)


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(call)
    except LabError as error:
        typer.echo(f"tradewind lab wan: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _print(links: tuple[LinkState, ...], output: Form) -> None:
    if output is Form.json:
        typer.echo(msgspec.json.format(msgspec.json.encode(links), indent=2).decode())
    else:
        print_table(HEADINGS, rows(links, {}, 0.0))


async def _watch(control: WanControl, wanted: tuple[str, ...], output: Form) -> None:
    """A table that is redrawn; as JSON, or where nobody looks, one after the other."""
    console = Console()
    live = output is Form.table and console.is_terminal
    loop = asyncio.get_running_loop()
    before: dict[str, LinkState] = {}
    seen_s = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        while True:
            links, now_s = await control.links(wanted), loop.time()
            if live:
                screen.update(_table(links, before, now_s - seen_s), refresh=True)
            elif output is Form.json:
                typer.echo(msgspec.json.encode(links).decode())
            else:
                print_table(HEADINGS, rows(links, {}, 0.0))
            before, seen_s = {link.name: link for link in links}, now_s
            await asyncio.sleep(WATCH_S)


def _table(links: tuple[LinkState, ...], before: dict[str, LinkState], elapsed_s: float) -> Table:
    table = Table(box=None)
    for heading in (*HEADINGS, RATE):
        table.add_column(heading, no_wrap=True)
    for row in rows(links, before, elapsed_s):
        table.add_row(*row, style=_style(row[2]))
    return table


def _style(state: str) -> str | None:
    if state == "up":
        return None
    return "red" if state.startswith(("cut", "flapping, down")) else "yellow"

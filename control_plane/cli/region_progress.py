"""How far a paced override is, shown until it has arrived: live on a terminal, else as lines."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import typer
from msgspec import Struct

from control_plane.admin.client import AdminClient
from control_plane.admin.errors import AdminError
from control_plane.cli import exits
from control_plane.cli.output import when
from runtime.clock import SystemClock
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

_POLL_S = 0.5
_LINE_EVERY_S = 10.0  # off a terminal, where nothing else happens
_LINE_EVERY_PERCENT = 10.0
_NO_DIRECTOR_S = 30.0  # how long to wait for one, unless a time is given


class Goal(Struct, frozen=True):
    """What is waited for. `target` 0 is a restore, which ends with no override left."""

    regions: tuple[str, ...]
    target: float
    revision: int


class RegionNow(Struct, frozen=True):
    """One region as the control plane tells it at the moment."""

    region: str
    percent: float
    target: float | None  # None: nothing overrides it
    paused: str
    expires_s: float


class Moment(Struct, frozen=True):
    """All of it at one moment."""

    regions: tuple[RegionNow, ...]
    director: str  # empty: none is alive, or its store is away
    done: int  # connected nodes that have the override
    nodes: int
    load: dict[str, float]  # region -> utilisation of those that are not moved
    followed: bool = True  # the change is known to whoever tells; else what it tells is older


class Display(Protocol):
    """Where progress is shown."""

    def show(self, lines: Sequence[str], moment: Moment) -> None: ...


def look(client: AdminClient, goal: Goal) -> Moment:
    """Ask every replica once; of those that answer and know the change, the director's word
    counts. Raises `AdminError` where none answers."""
    found = client.statuses()
    statuses = [s for _, s in found if not isinstance(s, AdminError)]
    if not statuses:
        raise next(s for _, s in found if isinstance(s, AdminError))
    best = max(
        statuses,
        key=lambda s: (s.revision >= goal.revision, s.director.self, s.director.number, s.revision),
    )
    told = {region.region: region for region in best.regions}
    nodes: dict[str, pb.NodeStatus] = {}
    for node in (n for s in statuses for n in s.nodes if n.connected):
        if node.id not in nodes or nodes[node.id].since_s < node.since_s:
            nodes[node.id] = node
    return Moment(
        regions=tuple(_now(name, told.get(name)) for name in goal.regions),
        director=best.director.replica if best.store.available else "",
        done=sum(node.acked_revision >= goal.revision for node in nodes.values()),
        nodes=len(nodes),
        load={
            name: region.utilisation
            for name, region in told.items()
            if name not in goal.regions or goal.target == 0.0
        },
        followed=best.revision >= goal.revision,
    )


def _now(name: str, told: pb.RegionStatus | None) -> RegionNow:
    if told is None or not told.override_action:
        return RegionNow(name, 0.0, None, "", 0.0)
    return RegionNow(
        name, told.override_percent, told.override_target, told.paused, told.override_expires_s
    )


def follow(client: AdminClient, goal: Goal, timeout_s: float | None) -> None:
    """Show progress until every region is where it is to be and every connected node has it.

    Raises `typer.Exit(NOT_EVERYWHERE)` where that does not come to pass: replaced by somebody
    else, out of time, without a director, or interrupted.
    """
    clock, pause = SystemClock(), threading.Event()
    started_s = led_s = clock.now()
    moment: Moment | None = None
    try:
        with _display() as display:
            while True:
                seen = _look_patiently(client, goal, moment)
                now_s = clock.now()
                if seen is not None:
                    moment = seen
                    led_s = now_s if moment.director else led_s
                    display.show(lines_of(moment, goal), moment)
                    ended = ended_early(moment, goal)
                    if ended or arrived(moment, goal):
                        break
                if timeout_s is not None and now_s - started_s > timeout_s:
                    ended = f"not there yet after {timeout_s:g} s"
                    break
                if timeout_s is None and now_s - led_s > _NO_DIRECTOR_S:
                    ended = "no director acts: it stands still until one does"
                    if seen is None:
                        ended = f"no replica answers since {_NO_DIRECTOR_S:g} s"
                    break
                pause.wait(_POLL_S)
    except KeyboardInterrupt:
        ended = "not watched any more"
    if ended:
        _say_how_it_goes_on(ended, moment, goal)
        raise typer.Exit(exits.NOT_EVERYWHERE)


def arrived(moment: Moment, goal: Goal) -> bool:
    there = all(
        region.target is None if goal.target == 0.0 else region.percent == goal.target
        for region in moment.regions
    )
    return there and moment.followed and moment.done == moment.nodes


def ended_early(moment: Moment, goal: Goal) -> str:
    """Why what was asked for is no longer what goes on; empty where it is."""
    for region in moment.regions if moment.followed else ():
        if region.target is None and goal.target > 0.0:
            return f"nothing overrides {region.region} any more: it expired or was restored"
        if region.target is not None and region.target != goal.target:
            return f"the override of {region.region} was replaced: it goes to {region.target:g}%"
    return ""


def lines_of(moment: Moment, goal: Goal) -> list[str]:
    """One line per region."""
    load = ", ".join(
        f"{name} {'?' if share < 0 else f'{share:.0%}'}" for name, share in moment.load.items()
    )
    out = []
    for region in moment.regions:
        line = f"{region.region} {_position(region, goal)}"
        line += f"; {moment.done} of {moment.nodes} nodes have it"
        if load:
            line += f"; load: {load}"
        if region.expires_s:
            line += f"; until {when(region.expires_s)}"
        moving = region.target is not None and region.percent != region.target
        if moving and not moment.director:
            line += "; STANDS STILL: no director acts"
        elif moving and region.paused:
            line += f"; WAITS: {region.paused}"
        out.append(line)
    return out


def _position(region: RegionNow, goal: Goal) -> str:
    if region.target is None:
        return "takes all of its requests" if goal.target == 0.0 else "is not overridden"
    if region.target == 0.0:
        return f"{region.percent:.1f}% still elsewhere, going to 0%"
    return f"{region.percent:.1f}% of {region.target:g}%"


def _look_patiently(client: AdminClient, goal: Goal, last: Moment | None) -> Moment | None:
    """A replica that is away for a moment does not end the watch; one that never answers does."""
    try:
        return look(client, goal)
    except AdminError as error:
        if last is None or not error.retryable:
            raise
        return None


def _say_how_it_goes_on(ended: str, moment: Moment | None, goal: Goal) -> None:
    names = " ".join(goal.regions)
    typer.echo(ended, err=True)
    if ended.startswith(("nothing overrides", "the override of")):
        return
    typer.echo(
        "  the change is made, and the director goes on with it without this command", err=True
    )
    if goal.target == 0.0:
        typer.echo(
            f"  to stop it: tradewind region drain {names} --to PERCENT --reason …", err=True
        )
        return
    at = max((region.percent for region in moment.regions), default=0.0) if moment else 0.0
    typer.echo(f"  to take it back: tradewind region restore {names} --reason …", err=True)
    if at >= 1.0:
        hold = f"tradewind region drain {names} --to {at:.0f} --reason …"
        typer.echo(f"  to hold it where it is: {hold}", err=True)


class _Lines:
    """Plain lines: when a region waits or goes on, every ten percent, every ten seconds."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._shown: tuple[object, ...] = ()
        self._at_s = -_LINE_EVERY_S

    def show(self, lines: Sequence[str], moment: Moment) -> None:
        told = tuple(
            (int(region.percent / _LINE_EVERY_PERCENT), region.target, bool(region.paused))
            for region in moment.regions
        )
        key = (told, bool(moment.director), moment.done == moment.nodes)
        if key == self._shown and self._clock.now() - self._at_s < _LINE_EVERY_S:
            return
        self._shown, self._at_s = key, self._clock.now()
        for line in lines:
            typer.echo(line, err=True)


class _Live:
    """Lines that are written over."""

    def __init__(self, live: object) -> None:
        self._live = live

    def show(self, lines: Sequence[str], moment: Moment) -> None:
        from rich.text import Text

        self._live.update(Text("\n".join(lines)), refresh=True)  # type: ignore[attr-defined]


@contextmanager
def _display() -> Iterator[Display]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield _Live(live)

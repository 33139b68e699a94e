"""What a person sees: a live picture on a terminal, plain lines elsewhere, tables at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lab.report import Failover, Outcome, Report
from lab.world import CLIENT_CITIES, REGIONS

RECENT = 12
_WIDTH = 46
_STYLES = {"singapore": "green", "frankfurt": "yellow", "dubai": "cyan"}


class LinesView:
    """One line per event: for logs, pipes and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> LinesView:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def step(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False)

    def phase(self, name: str, text: str) -> None:
        self._console.print(f"[bold]== {name}[/bold]: {text}", highlight=False)

    def outcome(self, outcome: Outcome) -> None:
        self._console.print(_line(outcome), soft_wrap=True)


class LiveView:
    """A table of cities and a picture of the regions, redrawn as answers come."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title = "starting"
        self._steps: deque[str] = deque(maxlen=RECENT)
        self._last: dict[str, Outcome] = {}
        self._recent: deque[Outcome] = deque(maxlen=RECENT)
        self._counts: dict[str, int] = {}
        self._failed = 0
        self._live = Live(
            console=console, refresh_per_second=8, transient=True, get_renderable=self._draw
        )

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def step(self, text: str) -> None:
        self._steps.append(text)

    def phase(self, name: str, text: str) -> None:
        self._title = f"{name}: {text}"
        self._console.print(f"[bold]== {name}[/bold]: {text}", highlight=False)

    def outcome(self, outcome: Outcome) -> None:
        self._last[outcome.city] = outcome
        self._recent.append(outcome)
        place = outcome.region or "cache" if not outcome.failed else "failed"
        self._counts[place] = self._counts.get(place, 0) + 1
        self._failed += outcome.failed

    def _draw(self) -> Panel:
        if not self._last:
            return Panel(Text("\n".join(self._steps)), title="Tradewind lab: starting")
        return Panel(Group(self._regions(), self._cities()), title=f"Tradewind lab: {self._title}")

    def _regions(self) -> Text:
        text = Text()
        for region in REGIONS:
            count = self._counts.get(region.name, 0)
            text.append(f" {region.city.name} {count} ", style=_STYLES[region.name])
        text.append(f" cache {self._counts.get('cache', 0)} ", style="magenta")
        text.append(f" failed {self._failed}", style="bold red" if self._failed else "dim")
        return text

    def _cities(self) -> Table:
        table = Table(box=None, expand=True)
        for name in ("city", "edge", "served by", "first token"):
            table.add_column(name, no_wrap=True)
        table.add_column("answer", no_wrap=True, ratio=1)  # takes what the others leave
        for city in CLIENT_CITIES:
            seen = self._last.get(city.name)
            if seen is not None:
                table.add_row(
                    seen.city, seen.edge, _place(seen), f"{seen.ttft_ms:.0f} ms", _words(seen)
                )
        return table


def _place(outcome: Outcome) -> Text:
    if outcome.failed:
        return Text("failed", style="bold red")
    if outcome.served_by == "cache":
        return Text("cache", style="magenta")
    return Text(outcome.region, style=_STYLES.get(outcome.region, ""))


def _words(outcome: Outcome) -> str:
    text = " ".join((outcome.error or outcome.answer).split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _line(outcome: Outcome) -> Text:
    line = Text(f"  {outcome.city:<10} -> {outcome.edge:<10} -> ")
    line.append_text(_place(outcome))
    line.append(f"  {outcome.ttft_ms:.0f}/{outcome.total_ms:.0f} ms  {_words(outcome)}")
    return line


def show_report(console: Console, report: Report) -> None:
    """The tables at the end: where each city was served, and what the failovers cost."""
    console.print(_requests_table(report.requests, console.width))
    console.print(_failover_table((report.drain, report.kill)))
    director = report.director
    console.print(
        f"Director {director.killed} killed: {director.successor} directed "
        f"{director.takeover_ms:.0f} ms later. After that everything was served without etcd.",
        highlight=False,
    )
    totals = report.totals
    memory = ", ".join(f"{kind} {mb:.0f} MB" for kind, mb in sorted(totals.memory_mb.items()))
    console.print(
        f"{totals.requests} requests from {totals.cities} cities through {totals.edges} edges: "
        f"{totals.failed} failed, {totals.from_cache} from cache, {totals.streamed} streamed; "
        f"engine {report.engine}; ready in {report.setup_s:.1f} s, "
        f"story {report.duration_s:.1f} s.\nLargest process of each kind: {memory}",
        highlight=False,
    )


class _Column(NamedTuple):
    """A column of the table of requests, left out where the terminal is narrower."""

    heading: str
    from_width: int
    cell: Callable[[Outcome], str | Text]
    justify: Literal["left", "right"] = "left"


_COLUMNS = (
    _Column("phase", 0, lambda o: o.phase),
    _Column("city", 0, lambda o: o.city),
    _Column("tenant", 100, lambda o: o.tenant),
    _Column("edge", 80, lambda o: o.edge),
    _Column("served\nby", 0, _place),
    _Column("path", 110, lambda o: o.path),
    _Column("first\ntoken ms", 0, lambda o: f"{o.ttft_ms:.0f}", "right"),
    _Column("total\nms", 0, lambda o: f"{o.total_ms:.0f}", "right"),
    _Column("first words", 140, lambda o: _words(o)),
)


def _requests_table(outcomes: Sequence[Outcome], width: int) -> Table:
    table = Table(title="Each city's last request of each phase")
    columns = [column for column in _COLUMNS if width >= column.from_width]
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    last = {(outcome.phase, outcome.city): outcome for outcome in outcomes}
    for outcome in last.values():
        table.add_row(*(column.cell(outcome) for column in columns))
    return table


def _failover_table(failovers: Sequence[Failover]) -> Table:
    table = Table(title="What the failovers cost")
    table.add_column("region", no_wrap=True)
    for name in (
        "in effect after ms",
        "requests during",
        "failed",
        "served there after",
        "first served elsewhere ms",
    ):
        table.add_column(name, justify="right", overflow="fold")
    for row in failovers:
        first = row.first_served_elsewhere_ms
        table.add_row(
            row.region,
            f"{row.in_effect_ms:.0f}",
            str(row.requests_during),
            str(row.failed),
            str(row.served_there_after),
            "-" if first is None else f"{first:.0f}",
        )
    return table

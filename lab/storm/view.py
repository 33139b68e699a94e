"""What a person sees of a storm: a live picture on a terminal, plain lines elsewhere, tables."""

from __future__ import annotations

from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lab.storm.counters import Series
from lab.storm.population import Live as HalfSecond
from lab.storm.report import Report, Run, bounds
from lab.storm.run import Plan, Watcher
from topology.cursor import TIERS

_LINE_EVERY_S = 5.0
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 60
_STEPS = 8


class Lines(Watcher):
    """For logs, pipes and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said_s = 0.0
        self._lately: list[HalfSecond] = []

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def says(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False, markup=False)

    def begins(self, plan: Plan) -> None:
        self._said_s = 0.0
        self._lately = []
        self._console.print(f"== {plan.name}", style="bold", highlight=False)

    def live(self, half_second: HalfSecond, series: Series) -> None:
        self._lately.append(half_second)
        if half_second.at_s - self._said_s >= _LINE_EVERY_S:
            span_s = half_second.at_s - self._said_s
            self.says(_line(self._lately, span_s))
            self._said_s, self._lately = half_second.at_s, []


def _line(some: list[HalfSecond], span_s: float) -> str:
    due = sum(sum(one.due) for one in some) / span_s
    sent = sum(one.sent for one in some) / span_s
    region = sum(one.by_region for one in some) / span_s
    answered = sum(sum(one.answered) for one in some) / span_s
    failed = sum(sum(one.failed) for one in some) / span_s
    slow = [max(one.p99_ms[i] for one in some) for i in range(len(TIERS))]
    times = ", ".join(
        f"{tier} {ms:.0f}" if ms >= 0 else f"{tier} -" for tier, ms in zip(TIERS, slow, strict=True)
    )
    return (
        f"{some[-1].at_s:5.1f} s  a second: {due:.0f} asked, {sent:.0f} sent, "
        f"{answered:.0f} answered ({region:.0f} by regions), {failed:.0f} failed; "
        f"slowest ms: {times}"
    )


class Picture(Watcher):
    """Redrawn as the population and the counters tell."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title = "starting"
        self._steps: deque[str] = deque(maxlen=_STEPS)
        self._seen: deque[HalfSecond] = deque(maxlen=_WIDTH)
        self._series: Series | None = None
        self._plan: Plan | None = None
        self._live = Live(
            console=console, refresh_per_second=4, transient=True, get_renderable=self._draw
        )

    def __enter__(self) -> Picture:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def says(self, text: str) -> None:
        self._steps.append(text)

    def begins(self, plan: Plan) -> None:
        self._title, self._plan = plan.name, plan
        self._seen.clear()
        self._console.print(f"== {plan.name}", style="bold", highlight=False)

    def live(self, half_second: HalfSecond, series: Series) -> None:
        self._seen.append(half_second)
        self._series = series

    def _draw(self) -> Panel:
        parts: list[Table | Text] = []
        if self._seen and self._plan is not None:
            parts += [self._curves(), self._tiers()]
            parts += [ladder] if (ladder := self._ladders()) is not None else []
        parts.append(Text("\n".join(self._steps), style="dim"))
        return Panel(Group(*parts), title=f"Tradewind storm: {self._title}")

    def _curves(self) -> Table:
        assert self._plan is not None
        table = Table(box=None, show_header=False)
        seen = list(self._seen)
        capacity = self._plan.capacity_rps
        rows = (
            ("asked /s", [2 * sum(one.due) for one in seen], "cyan"),
            ("sent /s", [2 * one.sent for one in seen], "yellow"),
            ("by regions /s", [2 * one.by_region for one in seen], "green"),
            ("failed /s", [2 * sum(one.failed) for one in seen], "red"),
        )
        for name, values, style in rows:
            top = max(*values, 1)
            bars = "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in values)
            table.add_row(name, Text(bars, style=style), f"{values[-1]:.0f}", f"most {top:.0f}")
        table.add_row("capacity /s", f"{capacity:.0f}", "", f"{seen[-1].at_s:.0f} s")
        return table

    def _tiers(self) -> Table:
        table = Table(box=None)
        for name in ("tier", "asked", "answered", "failed", "slowest ms"):
            table.add_column(name, justify="left" if name == "tier" else "right")
        last = list(self._seen)[-4:]
        for index, tier in enumerate(TIERS):
            slow = max(one.p99_ms[index] for one in last)
            table.add_row(
                tier,
                str(sum(one.due[index] for one in last)),
                str(sum(one.answered[index] for one in last)),
                str(sum(one.failed[index] for one in last)),
                f"{slow:.0f}" if slow >= 0 else "-",
            )
        return table

    def _ladders(self) -> Table | None:
        """How each edge stands, by its own metrics: pressure by tier, and who waits."""
        assert self._series is not None
        table = Table(box=None)
        for heading in ("edge", *(f"{tier}: pressure" for tier in TIERS), "waiting"):
            table.add_column(heading, justify="left" if heading == "edge" else "right")
        for name in self._series.names("edge"):
            reading = self._series.last(name)
            if reading is None:
                continue
            pressures = reading.by("tradewind_edge_pressure", "tier")
            table.add_row(
                name.removeprefix("edge-"),
                *(f"{pressures.get(tier, 0.0):.2f}" for tier in TIERS),
                f"{reading.sum('tradewind_edge_waiting'):.0f}",
            )
        return table if table.row_count else None


def show(console: Console, report: Report) -> None:
    """The runs side by side, what the protected one is held to, and the sweep."""
    if report.runs:
        console.print(_runs_table(report))
        console.print(_tiers_table(report))
    for run in report.runs.values():
        for warning in run.warnings:
            console.print(f"{run.name}: {warning}", style="yellow", highlight=False)
    protected = report.runs.get("protected")
    if protected is not None:
        console.print(_bounds_table(protected))
    if report.sweep is not None:
        console.print(_sweep_table(report))


def _runs_table(report: Report) -> Table:
    runs = list(report.runs.values())
    table = Table(title="The storm, side by side")
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run.name, justify="right")
    for name, cell in _ROWS:
        table.add_row(name, *(cell(run) for run in runs))
    return table


def _recovery(run: Run) -> str:
    return "not before the end" if run.recovery_s is None else f"{run.recovery_s:.1f} s"


_ROWS = (
    ("capacity, measured first", lambda r: f"{r.capacity_rps:.1f}/s"),
    ("asked at the peak", lambda r: f"{r.offered_peak_rps:.0f}/s"),
    ("sent at the peak, with repeats", lambda r: f"{r.tries_peak_rps:.0f}/s"),
    ("goodput at the peak, of capacity", lambda r: f"{r.goodput_ratio_at_peak:.1%}"),
    ("  shared answers counted once", lambda r: f"{r.distinct_ratio_at_peak:.1%}"),
    ("  with answers from caches", lambda r: f"{r.answers_ratio_at_peak:.1%}"),
    ("VIP answered", lambda r: f"{r.vip_success:.2%}"),
    ("VIP p99", lambda r: f"{r.vip_p99_ms:.0f} ms"),
    ("VIP p99 unloaded", lambda r: f"{r.vip_p99_unloaded_ms:.0f} ms"),
    ("requests to cores for each request", lambda r: f"{r.amplification:.2f}"),
    ("work nobody got", lambda r: f"{r.wasted_share:.1%}"),
    ("recovery after the peak", _recovery),
    ("CPU in use at the peak", lambda r: f"{r.cpu_at_peak.busy_share:.0%}"),
    ("requests sent late by (p99)", lambda r: f"{r.lag_p99_ms:.0f} ms"),
)


def _tiers_table(report: Report) -> Table:
    table = Table(title="By tier, through the event (p99 of those answered)")
    for name in (
        "run",
        "tier",
        "asked",
        "answered",
        "p99 ms",
        "unloaded",
        "first token",
        "recovery",
    ):
        table.add_column(name, justify="left" if name in ("run", "tier") else "right")
    for run in report.runs.values():
        for tier, found in run.tiers.items():
            table.add_row(
                run.name,
                tier,
                str(found.requests),
                f"{found.success:.2%}",
                f"{found.p99_ms:.0f}",
                f"{found.p99_unloaded_ms:.0f}",
                f"{found.first_token_p99_ms:.0f}",
                "-" if found.recovery_s is None else f"{found.recovery_s:.1f} s",
            )
    return table


def _bounds_table(run: Run) -> Table:
    table = Table(title="What the protected run is held to")
    for name in ("", "wanted", "found", ""):
        table.add_column(name)
    for bound in bounds(run):
        said = Text("met", style="green") if bound.met else Text("missed", style="bold red")
        table.add_row(bound.what, bound.wanted, bound.found, said)
    return table


def _sweep_table(report: Report) -> Table:
    assert report.sweep is not None
    table = Table(title=f"Goodput as the load rises (capacity {report.sweep.capacity_rps:.1f}/s)")
    for name in (
        "times normal",
        "asked /s",
        "of capacity",
        "goodput /s",
        "of capacity, or answered",
        "VIP",
    ):
        table.add_column(name, justify="right")
    for step in report.sweep.steps:
        table.add_row(
            f"{step.times:g}",
            f"{step.offered_rps:.0f}",
            f"{step.of_capacity:.1f}",
            f"{step.goodput_rps:.1f}",
            f"{step.goodput_ratio:.1%}",
            f"{step.vip_success:.2%}",
        )
    return table

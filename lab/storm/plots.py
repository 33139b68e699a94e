"""Plots of a report: a PNG for people, and a page that needs nothing but itself.

Both are drawn from the report alone, so that a report from elsewhere can be drawn too.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure

from lab.storm.figures import Second
from lab.storm.report import Report, Run, bounds
from topology.cursor import TIERS

_COLOURS = {"vip": "#b8860b", "standard": "#1f77b4", "batch": "#7f7f7f"}
_QUALITIES = {
    "full": "#2ca02c",
    "other-region": "#98df8a",
    "queued": "#ffbb78",
    "quantised": "#c5b0d5",
    "edge-model": "#e377c2",
    "stale": "#8c564b",
    "cached": "#17becf",
}
_DPI = 110
_MS_PER_S = 1000.0
_VERDICTS = ("met", "missed")


def draw(report: Report, beside: Path) -> tuple[Path, ...]:
    """Write `<report>.png` and `<report>.html` next to `beside`; return their names."""
    figures = [_storm(report, list(report.runs.values()))] if report.runs else []
    if report.sweep is not None:
        figures.append(_sweep(report))
    pictures = [_png(figure) for figure in figures]
    names = [beside.with_suffix(".png"), beside.with_name(f"{beside.stem}-sweep.png")]
    written = []
    for name, picture in zip(names if report.runs else names[1:], pictures, strict=False):
        name.write_bytes(picture)
        written.append(name)
    page = beside.with_suffix(".html")
    page.write_text(_page(report, pictures), encoding="utf-8")
    return (*written, page)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI)
    return out.getvalue()


def _storm(report: Report, runs: Sequence[Run]) -> Figure:
    """One column a run, the same scales in each row."""
    rows: tuple[tuple[str, Any], ...] = (
        ("requests a second", _offered),
        ("goodput and capacity, a second", _goodput),
        ("p99 of the whole answer, s", _latency),
        ("answered, % of those that came", _success),
        ("answers a second, by quality", _quality),
    )
    figure = Figure(figsize=(5.2 * len(runs) + 0.8, 2.3 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(runs), squeeze=False, sharex=True, sharey="row")
    peak = next((phase for phase in report.phases if phase.name == "peak"), None)
    for column, run in enumerate(runs):
        axes[0][column].set_title(run.name)
        for row, (label, plot) in enumerate(rows):
            axis = axes[row][column]
            plot(axis, run, run.over_time)
            if peak is not None:
                axis.axvspan(peak.begins_s, peak.ends_s, color="#fff3cd", zorder=0)
            axis.grid(alpha=0.25)
            if column == 0:
                axis.set_ylabel(label, fontsize=8)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7, loc="upper right", framealpha=0.7)
        axes[-1][column].set_xlabel("seconds")
    return figure


def _at(seconds: Sequence[Second]) -> list[float]:
    return [second.at_s + 0.5 for second in seconds]


def _offered(axis: Any, run: Run, seconds: Sequence[Second]) -> None:
    axis.plot(_at(seconds), [sum(s.due) for s in seconds], label="asked", color="#1f77b4")
    axis.plot(_at(seconds), [s.tries for s in seconds], label="sent, with repeats", color="#ff7f0e")
    axis.plot(
        _at(seconds), [s.reached_cores for s in seconds], label="reached cores", color="#d62728"
    )
    axis.plot(_at(seconds), [s.admitted for s in seconds], label="admitted", color="#9467bd")


def _goodput(axis: Any, run: Run, seconds: Sequence[Second]) -> None:
    axis.plot(_at(seconds), [s.goodput for s in seconds], label="by regions", color="#2ca02c")
    answered = [sum(s.answered) for s in seconds]
    axis.plot(_at(seconds), answered, label="with caches", color="#17becf", linewidth=0.8)
    axis.axhline(run.capacity_rps, color="black", linestyle="--", linewidth=0.8, label="capacity")


def _latency(axis: Any, run: Run, seconds: Sequence[Second]) -> None:
    for index, tier in enumerate(TIERS):
        points = [
            (s.at_s + 0.5, s.p99_ms[index] / _MS_PER_S) for s in seconds if s.p99_ms[index] >= 0
        ]
        axis.plot(
            *zip(*points, strict=True) if points else ([], []), label=tier, color=_COLOURS[tier]
        )


def _success(axis: Any, run: Run, seconds: Sequence[Second]) -> None:
    for index, tier in enumerate(TIERS):
        some = [s for s in seconds if s.due[index]]
        share = [100 * (1 - s.failed[index] / s.due[index]) for s in some]
        axis.plot(_at(some), share, label=tier, color=_COLOURS[tier])
    axis.set_ylim(-4, 104)


def _quality(axis: Any, run: Run, seconds: Sequence[Second]) -> None:
    found = {quality for second in seconds for quality in second.qualities}
    order = [quality for quality in _QUALITIES if quality in found]
    order += sorted(found - set(order))
    if order:
        axis.stackplot(
            _at(seconds),
            *([s.qualities.get(quality, 0) for s in seconds] for quality in order),
            labels=order,
            colors=[_QUALITIES.get(quality, "#cccccc") for quality in order],
        )


def _sweep(report: Report) -> Figure:
    """Goodput against load, and how near it is to what can be had."""
    assert report.sweep is not None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    steps, capacity = report.sweep.steps, report.sweep.capacity_rps
    asked = [step.offered_rps for step in steps]
    axis.plot(asked, [step.goodput_rps for step in steps], "o-", color="#2ca02c", label="goodput")
    axis.plot(
        asked, [min(a, capacity) for a in asked], "k--", linewidth=0.8, label="the most there is"
    )
    for step in steps:
        axis.annotate(f"{step.times:g}x", (step.offered_rps, step.goodput_rps), fontsize=7)
    axis.set(xlabel="asked a second", ylabel="answers of regions a second", ylim=(0, None))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return figure


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:78em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ddd}
th{text-align:left}td{text-align:right}td:first-child{text-align:left}
.met{color:#1a7f37}.missed{color:#b91c1c;font-weight:600}img{max-width:100%}small{color:#666}
"""


def _page(report: Report, pictures: Sequence[bytes]) -> str:
    """One file: tables, the pictures inside it, and what was run."""
    images = "".join(
        f'<img alt="plot" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for picture in pictures
    )
    event = report.event
    said = (
        f"{event.normal_rps:.0f} requests a second, then {event.peak_rps:.0f} for "
        f"{event.peak_s:g} s ({event.scale:g} of the incident's rates), through "
        f"{report.cores} cores with the engine {report.engine}; seed {report.seed}."
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>The storm</title>"
        f"<style>{_STYLE}</style><h1>The storm</h1><p>{html.escape(said)}</p>"
        f"{_runs(report)}{_held_to(report)}{images}{_times(report)}"
        "<p><small>Made by <code>tradewind storm --report</code>; docs/storm.md says what each "
        "figure is.</small></p></html>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str, tag: str) -> str:
        kind = f" class={text}" if text in _VERDICTS else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    lines = ["".join(cell(text, "th") for text in head)]
    lines += ["".join(cell(text, "td") for text in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _runs(report: Report) -> str:
    rows = [
        (
            run.name,
            f"{run.capacity_rps:.1f}",
            f"{run.offered_peak_rps:.0f}",
            f"{run.tries_peak_rps:.0f}",
            f"{run.goodput_ratio_at_peak:.1%}",
            f"{run.vip_success:.2%}",
            f"{run.vip_p99_ms:.0f}",
            f"{run.vip_p99_unloaded_ms:.0f}",
            f"{run.amplification:.2f}",
            "never" if run.recovery_s is None else f"{run.recovery_s:.1f}",
        )
        for run in report.runs.values()
    ]
    head = ("run", "capacity /s", "asked /s", "sent /s", "goodput of capacity", "VIP answered")
    more = ("VIP p99 ms", "unloaded ms", "to cores per request", "recovery s")
    return _table((*head, *more), rows)


def _held_to(report: Report) -> str:
    protected = report.runs.get("protected")
    if protected is None:
        return ""
    rows = [(b.what, b.wanted, b.found, _VERDICTS[not b.met]) for b in bounds(protected)]
    return _table(("the protected run", "wanted", "found", ""), rows)


def _times(report: Report) -> str:
    """The numbers behind the curves."""
    head = ("s", "asked", "sent", "to cores", "goodput", "answered", "failed", "p99 ms by tier")
    parts = []
    for run in report.runs.values():
        rows = [
            (
                str(s.at_s),
                str(sum(s.due)),
                str(s.tries),
                f"{s.reached_cores:.0f}",
                str(s.goodput),
                str(sum(s.answered)),
                str(sum(s.failed)),
                " / ".join("-" if ms < 0 else f"{ms:.0f}" for ms in s.p99_ms),
            )
            for s in run.over_time
        ]
        parts.append(f"<details><summary>{html.escape(run.name)}, second by second</summary>")
        parts.append(_table(head, rows) + "</details>")
    return "".join(parts)

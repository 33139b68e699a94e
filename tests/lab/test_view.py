"""What a person sees fits their terminal, and its figures are the last thing to go."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from lab.report import Failover, Report, Takeover, totals
from lab.view import LiveView, show_report
from tests.lab.test_report import seen

OUTCOMES = [
    seen("Hong Kong", "singapore", 1.0, edge="sao-paulo", phase="draining", ttft_ms=1234.0),
    seen("Sao Paulo", "frankfurt", 2.0, phase="drained", total_ms=56789.0, answer="word " * 40),
    seen("Tel Aviv", "", 3.0, served_by="cache", ttft_ms=5.0),
]


def terminal(width: int) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=40, force_terminal=True, color_system=None
    )


def shown(console: Console) -> str:
    file: Any = console.file
    return str(file.getvalue())


@pytest.mark.parametrize("width", [60, 80, 100, 150, 200])
def test_the_tables_at_the_end(width: int) -> None:
    cost = Failover(
        region="frankfurt", in_effect_ms=1204.0, requests_during=101, failed=0,
        served_there_after=7, first_served_elsewhere_ms=1758.0,
    )  # fmt: skip
    report = Report(
        engine="sim", requests=tuple(OUTCOMES), drain=cost, kill=cost,
        director=Takeover(killed="cp-1", successor="cp-2", takeover_ms=2100.0),
        totals=totals(OUTCOMES, {"edge": 90.0}), setup_s=1.0, duration_s=2.0,
    )  # fmt: skip
    console = terminal(width)
    show_report(console, report)
    text = shown(console)
    for figure in ("Hong Kong", "draining", "singapore", "1234", "56789", "cache", "1204", "1758"):
        assert figure in text
    assert ("sao-paulo" in text) == (width >= 80)


@pytest.mark.parametrize("width", [60, 100])
def test_the_live_picture(width: int) -> None:
    console = terminal(width)
    view = LiveView(console)
    for outcome in OUTCOMES:
        view.outcome(outcome)
    console.print(view._draw())
    text = shown(console)
    for figure in ("Hong Kong", "sao-paulo", "singapore", "1234 ms", "cache"):
        assert figure in text

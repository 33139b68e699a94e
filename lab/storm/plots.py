"""Plots of a report."""

from __future__ import annotations

from pathlib import Path

from lab.storm.report import Report


def draw(report: Report, beside: Path) -> tuple[Path, ...]:
    """Not yet."""
    return ()

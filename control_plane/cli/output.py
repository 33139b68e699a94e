"""Printing: aligned columns for people, JSON and YAML for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any

import typer
import yaml

from control_plane.cli.options import Format


def print_data(data: Any, output: Format) -> None:
    """A document as JSON or YAML; a list of documents becomes several YAML documents."""
    if output is Format.JSON:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif isinstance(data, list):
        typer.echo(yaml.safe_dump_all(data, sort_keys=False, allow_unicode=True), nl=False)
    else:
        typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their widest cell, never cut: a terminal may wrap, a pipe gets all."""
    for text in table_lines(headings, rows):
        typer.echo(text)


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table."""
    lines = [list(headings), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def spinner(text: str) -> AbstractContextManager[Any]:
    """Shows on a terminal that something is being waited for; elsewhere shows nothing."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def good(text: str) -> str:
    return typer.style(text, fg=typer.colors.GREEN)


def bad(text: str) -> str:
    return typer.style(text, fg=typer.colors.RED)


def when(unix_s: float) -> str:
    """A moment, in UTC; `-` where there was none."""
    if not unix_s:
        return "-"
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(unix_s: float, now_s: float) -> str:
    """How long ago, in one unit; `-` where it never was."""
    if not unix_s:
        return "-"
    seconds = max(0.0, now_s - unix_s)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else line(str(value))


def line(text: str) -> str:
    """One line without control characters, which could rewrite the rest of the screen."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)

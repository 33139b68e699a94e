"""Make everything as it was after an earlier change."""

from __future__ import annotations

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)

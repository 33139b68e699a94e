"""Show what was changed: by whom, when and why."""

from __future__ import annotations

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)

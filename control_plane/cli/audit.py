"""Show who did what, and prove that nobody rewrote it."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Show who did what, and prove that nobody rewrote it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

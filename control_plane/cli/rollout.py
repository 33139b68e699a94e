"""Watch and steer the rollout of a change."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Watch and steer the rollout of a change.", no_args_is_help=True, rich_markup_mode=None
)

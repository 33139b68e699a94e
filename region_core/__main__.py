"""`python -m region_core`: how a parent starts a core."""

from region_core.cli import app

app()

"""`python -m edge_node`: how a parent starts its workers."""

from edge_node.cli import app

app()

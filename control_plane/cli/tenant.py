"""Make API keys for tenants."""

from __future__ import annotations

import sys

import typer

from control_plane.cli import options
from control_plane.cli.options import Format
from control_plane.cli.output import print_data
from topology.api_key import digest, new_key

app = typer.Typer(
    help="Make API keys for tenants.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.command("new-key")
def make(output: options.Output = Format.TABLE) -> None:
    """Make a new API key and print it, this once, with its hash for the Tenant.

    \b
    Example:
      tradewind tenant new-key
    """
    key = new_key()
    if output is not Format.TABLE:
        print_data({"key": key, "hash": digest(key)}, output)
        return
    typer.echo(f"key:  {key}")
    typer.echo(f"hash: {digest(key)}")
    typer.echo(
        "Give the key to the tenant: it is kept nowhere. Add the hash to `spec.api_keys`.", err=True
    )


@app.command("hash-key")
def hash_key() -> None:
    """Print the hash of an API key, read from stdin or asked for, for a Tenant's `api_keys`.

    \b
    Example:
      tradewind tenant hash-key < key.txt
    """
    key = typer.prompt("API key", hide_input=True) if sys.stdin.isatty() else sys.stdin.read()
    key = key.strip()
    if not key or len(key.split()) != 1:
        raise typer.BadParameter("expected one API key on stdin")
    typer.echo(digest(key))

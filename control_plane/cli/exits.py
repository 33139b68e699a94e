"""The one place that maps errors to exit codes, and prints them. docs/cli.md lists the codes."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from runtime.errors import TradewindError
from runtime.validation import InvalidDocument, Problem

OK = 0
ERROR = 1
USAGE = 2  # also what the command line itself exits with for a wrong option
CONFLICT = 3
REFUSED = 4
UNAVAILABLE = 5
DENIED = 6
DIFFERENT = 7
NOT_EVERYWHERE = 8
TAMPERED = 9
TAKEN_BACK = 10

MEANINGS = {
    OK: "done",
    ERROR: "any other error: not found, a file that cannot be written, a mistake of ours",
    USAGE: "a wrong option, or a document that is invalid",
    CONFLICT: "somebody else changed the same thing; nothing was changed",
    REFUSED: "a safety rule refused the change; nothing was changed",
    UNAVAILABLE: "no control-plane replica, or no store, could be reached in time",
    DENIED: "this identity may not do that",
    DIFFERENT: "diff: there are differences",
    NOT_EVERYWHERE: "the change was made, and not every node has taken it up yet",
    TAMPERED: "audit verify: an entry was altered, removed, added or moved",
    TAKEN_BACK: "rollout status --watch: the change was taken back",
}

_BY_CODE = {
    "invalid": USAGE,
    "conflict": CONFLICT,
    "refused": REFUSED,
    "unavailable": UNAVAILABLE,
    "deadline": UNAVAILABLE,
    "denied": DENIED,
}
_SHOWN_PROBLEMS = 100


def code_of(error: BaseException) -> int:
    """The exit code for an error; `AdminError` is told by its `code`: gRPC need not load."""
    if isinstance(error, InvalidDocument):
        return USAGE
    return _BY_CODE.get(getattr(error, "code", ""), ERROR)


def report(error: Exception) -> int:
    """Print an error to stderr, with what to do about it; returns the exit code."""
    if not isinstance(error, TradewindError):
        typer.echo(f"tradewind: unexpected {type(error).__name__}: {error}", err=True)
        if os.environ.get("TRADEWIND_DEBUG"):
            traceback.print_exception(error, file=sys.stderr)
        else:
            typer.echo("  a mistake in tradewind; TRADEWIND_DEBUG=1 shows where", err=True)
        return ERROR
    problems: tuple[Problem, ...] = getattr(error, "problems", ())
    if problems and not isinstance(error, InvalidDocument):  # whose message has them already
        _print_problems(problems, getattr(error, "omitted", 0))
    else:
        typer.echo(f"tradewind: {error.message}", err=True)
    if getattr(error, "ambiguous", False):
        typer.echo("  it may have been made nevertheless: look before you try again", err=True)
    if error.hint:
        typer.echo(f"  {error.hint}", err=True)
    return code_of(error)


def _print_problems(problems: tuple[Problem, ...], omitted: int) -> None:
    count = len(problems) + omitted
    typer.echo(f"tradewind: {count} mistake{'s' if count != 1 else ''}:", err=True)
    for problem in problems[:_SHOWN_PROBLEMS]:
        typer.echo(f"  {problem}", err=True)
    if count > _SHOWN_PROBLEMS:
        typer.echo(f"  and {count - _SHOWN_PROBLEMS} more", err=True)

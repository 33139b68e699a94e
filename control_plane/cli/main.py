"""`tradewind`: the operator's command line. Verbs are loaded when they are used.

`--help` imports no verb: each one's summary is the first line of its module's docstring, read
without running it. Verbs of other packages come in as entry points of `tradewind.commands`; one
that cannot be loaded is shown as such and disturbs nobody else.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from control_plane.cli import exits
from control_plane.cli.context import Given

_VERBS = {
    "apply": "control_plane.cli.apply:app",
    "diff": "control_plane.cli.diff:app",
    "delete": "control_plane.cli.delete:app",
    "get": "control_plane.cli.get:app",
    "status": "control_plane.cli.status:app",
    "explain": "control_plane.cli.explain:app",
    "paths": "control_plane.cli.paths:app",
    "ladder": "control_plane.cli.ladder:app",
    "region": "control_plane.cli.region:app",
    "rollout": "control_plane.cli.rollout:app",
    "history": "control_plane.cli.history:app",
    "rollback": "control_plane.cli.rollback:app",
    "audit": "control_plane.cli.audit:app",
    "tenant": "control_plane.cli.tenant:app",
    "pki": "control_plane.cli.pki:app",
    "control-plane": "control_plane.cli.control_plane:app",
    "dns": "control_plane.cli.dns:app",
}
# Verbs that talk to the control plane, and the options that all of them share.
_REMOTE = frozenset(
    (
        *("apply", "diff", "delete", "get", "status", "explain", "paths", "ladder", "region"),
        *("rollout", "history", "rollback", "audit"),
    )
)
_GLOBAL = ("--endpoint", "--identity")
PLUGINS = "tradewind.commands"


class Verbs(TyperGroup):
    """A group whose commands are imported when one of them runs."""

    _summaries_only = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_targets())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        target = _targets().get(cmd_name)
        if target is None:
            return None
        if self._summaries_only:
            return TyperCommand(name=cmd_name, help=_summary(target))
        return _load(cmd_name, target)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._summaries_only = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._summaries_only = False

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        self._summaries_only = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._summaries_only = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _global_options_first(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        close = get_close_matches(args[0], _targets(), n=1)
        if close and args[0] not in _targets():
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Typer's own: usage errors, Exit, Abort, and a closed pipe.
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise
            raise typer.Exit(exits.report(error)) from error


def _global_options_first(args: list[str]) -> list[str]:
    """`tradewind get regions --endpoint …` is as good as `tradewind --endpoint … get regions`."""
    verb = next((index for index, arg in enumerate(args) if arg in _REMOTE), None)
    if verb is None:
        return args
    before, after, rest = args[:verb], list[str](), iter(args[verb:])
    for arg in rest:
        if arg in _GLOBAL:
            value = next(rest, None)
            if value is None:
                return [*before, arg]  # and the parser says that a value is missing
            before += [arg, value]
        elif arg.partition("=")[0] in _GLOBAL:
            before.append(arg)
        else:
            after.append(arg)
    return before + after


def _targets() -> dict[str, str]:
    """Every verb and where it is: ours first, then plugins, which cannot replace ours."""
    plugins = {point.name: point.value for point in entry_points(group=PLUGINS)}
    return _VERBS | {name: at for name, at in sorted(plugins.items()) if name not in _VERBS}


def _load(name: str, target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    if name in _REMOTE:
        # Errors are told by us, and not a second time by gRPC's own log. Read when it loads.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app = getattr(importlib.import_module(module_name), attribute)
        command = typer.main.get_command(app)
    except Exception as error:
        if target in _VERBS.values():
            raise
        typer.echo(f"tradewind: the plugin {name!r} ({target}) cannot be loaded: {error}", err=True)
        typer.echo(f"  install what it needs, or remove the package that brings {name!r}", err=True)
        raise typer.Exit(exits.ERROR) from error
    command.name = name
    return command


def _summary(target: str) -> str:
    """The first line of a module's docstring, without importing the module."""
    module_name = target.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
        if spec is None or spec.origin is None:
            return "(cannot be loaded: not installed)"
        text = Path(spec.origin).read_text(encoding="utf-8")
        line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        return f"(cannot be loaded: {error})"
    return line.partition(": ")[2].capitalize() if line.startswith("`") else line


_EPILOG = (
    "Exit codes: "
    + "; ".join(f"{code} {meaning}" for code, meaning in exits.MEANINGS.items())
    + "."
)

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tradewind {version('tradewind')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    endpoint: Annotated[
        str,
        typer.Option(
            help="Control-plane replicas, host:port[,host:port]; also $TRADEWIND_ENDPOINTS."
        ),
    ] = "",
    identity: Annotated[
        Path | None,
        typer.Option(help="Folder with your certificate; also $TRADEWIND_IDENTITY."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Tradewind's command line: configure regions, routes and tenants, and see what they do.

    Replicas and your identity come from options, from the environment, or from the first of
    these files: $TRADEWIND_CONTEXT, ./.lab/context.yaml, ~/.config/tradewind/context.yaml.
    """
    ctx.obj = Given(endpoint, identity)


def main() -> None:
    """The console script."""
    typer.main.get_command(app).main(args=sys.argv[1:], prog_name="tradewind")


if __name__ == "__main__":
    main()

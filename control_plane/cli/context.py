"""Which control plane, and as whom: options, then environment, then a context file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer
import yaml
from msgspec import Struct

from runtime.errors import TradewindError
from runtime.validation import convert

if TYPE_CHECKING:
    from control_plane.admin.client import AdminClient

ENDPOINTS = "TRADEWIND_ENDPOINTS"
IDENTITY = "TRADEWIND_IDENTITY"
CONTEXT = "TRADEWIND_CONTEXT"

_ENDPOINT = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")


class WrongContext(TradewindError):
    """It is not known whom to ask, or as whom."""

    code = "invalid"


class Given(Struct, frozen=True):
    """What the options before the verb said."""

    endpoint: str = ""
    identity: Path | None = None


class ContextFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A context file. `identity` is relative to the file's own folder."""

    endpoints: tuple[str, ...] = ()
    identity: str = ""
    name: str = ""


class Context(Struct, frozen=True):
    """Where to send calls, and the folder with the identity to send them with."""

    endpoints: tuple[str, ...]
    identity: Path
    source: str  # for people: where this was found


def resolve(
    given: Given,
    environment: Mapping[str, str] | None = None,
    here: Path | None = None,
    home: Path | None = None,
) -> Context:
    """The context to work in. Raises `WrongContext`, or `InvalidDocument` for a wrong file."""
    env = os.environ if environment is None else environment
    path, file = _file(env, here or Path.cwd(), home or Path.home())
    endpoints = _split(given.endpoint) or _split(env.get(ENDPOINTS, "")) or file.endpoints
    identity = given.identity or (Path(env[IDENTITY]) if env.get(IDENTITY) else None)
    if identity is None and file.identity and path is not None:
        identity = path.parent / file.identity
    told = f"--endpoint, ${ENDPOINTS}, or `endpoints` in a context file"
    if not endpoints:
        raise WrongContext("no control plane is named", hint=f"name one: {told}")
    wrong = [endpoint for endpoint in endpoints if not _ENDPOINT.match(endpoint)]
    if wrong:
        raise WrongContext(f"not host:port: {', '.join(map(repr, wrong))}", hint=f"see {told}")
    if identity is None:
        raise WrongContext(
            "no identity is named",
            hint=f"name one: --identity DIR, ${IDENTITY}, or `identity` in a context file; "
            "`tradewind pki issue operator/<name>` makes one",
        )
    source = f"{file.name or path}" if path is not None else "options"
    return Context(endpoints, identity, source)


def connect(ctx: typer.Context) -> AdminClient:
    """A client for the context of this command. Raises `WrongContext` and `IdentityError`."""
    # gRPC and cryptography take a fifth of a second to load: not for `--help`.
    from control_plane.admin.client import AdminClient
    from control_plane.pki import identity_files
    from runtime.identity import Identity

    context = resolve(_given(ctx))
    return AdminClient(context.endpoints, Identity.load(identity_files(context.identity)))


def _given(ctx: typer.Context) -> Given:
    root = ctx.find_root()
    if isinstance(root.obj, Given):
        return root.obj
    # While the shell completes, the root command does not run.
    return Given(root.params.get("endpoint") or "", root.params.get("identity"))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _file(env: Mapping[str, str], here: Path, home: Path) -> tuple[Path | None, ContextFile]:
    """The first context file there is; one that $TRADEWIND_CONTEXT names must be there."""
    named = env.get(CONTEXT)
    if named and not Path(named).is_file():
        raise WrongContext(f"there is no file {named}", hint=f"${CONTEXT} names it")
    choices = [here / ".lab" / "context.yaml", home / ".config" / "tradewind" / "context.yaml"]
    for path in [Path(named)] if named else choices:
        if path.is_file():
            return path, _read(path)
    return None, ContextFile()


def _read(path: Path) -> ContextFile:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WrongContext(f"cannot read {path}: {error}", hint="it must be YAML") from error
    return convert({} if raw is None else raw, ContextFile, str(path))

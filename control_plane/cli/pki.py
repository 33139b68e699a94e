"""Make the mesh's CA and certificates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.cli import exits
from control_plane.cli.durations import seconds

if TYPE_CHECKING:
    from control_plane.pki.rotation import Step

app = typer.Typer(
    help="Make the mesh's CA and certificates.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

# Said here as well as where they are defined: cryptography takes a while to load.
_ROLES = "edge, core, control, dns, proxy; of people viewer, operator, admin"
_NEXT_STEP = {
    "trust": "next, when every process has read it: --phase reissue",
    "reissue": "next, when every process shows its new certificate: --phase retire",
    "retire": "the old CA is retired; copies of its key may be destroyed",
}


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to put ca.pem and ca-key.pem.")],
    days: Annotated[int, typer.Option(help="How long it is valid.", min=1, max=36_500)] = 3650,
) -> None:
    """Make a certificate authority. Keep ca-key.pem offline: it can make any identity.

    \b
    Example:
      tradewind pki init ./ca
    """
    from control_plane.pki import create_ca

    create_ca(directory, days=days)
    typer.echo(f"{directory / 'ca.pem'}: give it to everybody")
    typer.echo(f"{directory / 'ca-key.pem'}: give it to nobody")


@app.command()
def issue(
    principal: Annotated[str, typer.Argument(help=f"ROLE/NAME. Roles: {_ROLES}.")],
    ca: Annotated[Path, typer.Option(help="The folder that `pki init` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for certificate.pem, key.pem and ca.pem.")],
    host: Annotated[
        list[str] | None, typer.Option(help="A further DNS name or address; may be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(help="How long it is valid.", min=1, max=3650)] = 365,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
) -> None:
    """Issue a certificate that speaks for one principal.

    \b
    Examples:
      tradewind pki issue operator/alice --ca ./ca --out ~/.config/tradewind/alice
      tradewind pki issue core/singapore --ca ./ca --out ./singapore --host 192.0.2.10
    """
    from control_plane.pki import AuthorityError, identity_files
    from control_plane.pki import issue as make
    from control_plane.pki.files import locked
    from runtime.identity import Principal

    role, _, name = principal.partition("/")
    there = identity_files(out).certificate
    if there.exists() and not force:
        raise AuthorityError(f"{there} exists already", hint="--force replaces it")
    with locked(ca):
        files = make(ca, Principal(role, name), out, hosts=host or (), days=days)
    typer.echo(f"{files.certificate}: speaks for {principal}, {days} days")


@app.command()
def rotate(
    trees: Annotated[
        list[Path], typer.Argument(help="Identity folders, or folders with such in them.")
    ],
    ca: Annotated[Path, typer.Option(help="The folder that `pki init` wrote.")],
    phase: Annotated[
        str,
        typer.Option(
            help="Replace the CA itself: trust, then reissue, then retire.",
            autocompletion=lambda incomplete: [p for p in _NEXT_STEP if p.startswith(incomplete)],
        ),
    ] = "",
    older_than: Annotated[
        str, typer.Option(help="Only certificates issued that long ago: 12h, 30d.")
    ] = "",
    days: Annotated[
        int | None, typer.Option(help="How long the new ones are valid; as the old ones.", min=1)
    ] = None,
    settle: Annotated[
        str, typer.Option(help="How long processes have to read the files of a phase.")
    ] = "60s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it and change nothing.")] = False,
    force_missing: Annotated[
        bool, typer.Option("--force-missing", help="Give up identities in no folder given.")
    ] = False,
) -> None:
    """Renew certificates: new keys, the same principals and hosts. Nothing need be restarted.

    With --phase the CA itself is replaced, in three steps with a wait between them: `trust`
    (everybody trusts the new CA beside the old one), `reissue` (everybody gets a certificate of
    the new one), `retire` (the old one is trusted no more). docs/pki.md says more.

    \b
    Examples:
      tradewind pki rotate ./identities --ca ./ca --older-than 30d
      tradewind pki rotate ./identities --ca ./ca --phase trust
    """
    from control_plane.pki import AuthorityError
    from control_plane.pki.files import locked
    from control_plane.pki.rotation import PHASES, Rotation, find
    from runtime.clock import SystemClock

    if phase and phase not in PHASES:
        raise typer.BadParameter(f"--phase {phase!r} is none of " + ", ".join(PHASES))
    if phase and (older_than or days is not None):
        raise typer.BadParameter("--older-than and --days do not go with --phase")
    older_than_s = seconds("--older-than", older_than)
    found, broken = find(trees)
    if not found and not broken:
        raise AuthorityError(
            "there is no identity in " + ", ".join(map(str, trees)),
            hint="an identity is a folder with certificate.pem, key.pem and ca.pem",
        )
    if phase and broken:
        raise AuthorityError(
            f"{broken[0].folder} cannot be read: {broken[0].error}",
            hint="a phase needs all identities; mend this one, or move it away",
        )
    rotation = Rotation(
        ca,
        found,
        SystemClock(),
        dry_run=dry_run,
        settle_s=seconds("--settle", settle),
        force=force_missing,
    )
    with locked(ca):
        steps = rotation.phase(phase) if phase else rotation.renew(older_than_s, days)
        _show(steps, broken, len(found), phase, dry_run)


def _show(
    steps: Iterator[Step], broken: Sequence[Step], total: int, phase: str, dry_run: bool
) -> None:
    """Print each step as it is done, and a line in the end; exits with 1 where one failed."""
    would = "would be " if dry_run else ""
    done = failed = 0
    for step in chain(broken, steps):
        if step.error:
            failed += 1
            typer.echo(f"{step.principal} in {step.folder}: FAILED: {step.error}", err=True)
        else:
            done += 1
            typer.echo(f"{step.principal} in {step.folder}: {would}{step.done}")
    left = total + len(broken) - done - failed
    typer.echo(f"{done} {would}done, {left} left as they are, {failed} failed")
    if failed:
        raise typer.Exit(exits.ERROR)
    if phase and not dry_run:
        typer.echo(_NEXT_STEP[phase])

"""Make the mesh's CA and certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Make the mesh's CA and certificates.", no_args_is_help=True, rich_markup_mode=None
)


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
    principal: Annotated[
        str, typer.Argument(help="ROLE/NAME: edge, core, control, dns, operator.")
    ],
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
    from runtime.identity import Principal

    role, _, name = principal.partition("/")
    there = identity_files(out).certificate
    if there.exists() and not force:
        raise AuthorityError(f"{there} exists already", hint="--force replaces it")
    files = make(ca, Principal(role, name), out, hosts=host or (), days=days)
    typer.echo(f"{files.certificate}: speaks for {principal}, {days} days")

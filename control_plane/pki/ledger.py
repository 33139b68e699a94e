"""What a CA has issued, in a file beside it: so that nobody is forgotten when the CA changes."""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography import x509
from msgspec import Struct

from control_plane.pki.files import AuthorityError
from runtime.identity import Principal

LEDGER = "issued.jsonl"


class Issued(Struct, frozen=True):
    """One certificate."""

    principal: str  # "edge/tokyo"
    serial: str  # hex
    issuer: str  # the CA's name
    expires_s: float  # Unix time
    folder: str


def note(directory: Path, principal: Principal, leaf: x509.Certificate, folder: Path) -> None:
    """Add a certificate to the ledger of the CA in `directory`."""
    entry = Issued(
        str(principal),
        f"{leaf.serial_number:x}",
        leaf.issuer.rfc4514_string(),
        leaf.not_valid_after_utc.timestamp(),
        str(folder.resolve()),
    )
    try:
        with (directory / LEDGER).open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
    except OSError as error:
        raise AuthorityError(f"cannot write {directory / LEDGER}: {error.strerror}") from error


def read(directory: Path) -> list[Issued]:
    """All that was issued, oldest first. A line that was cut off by a crash is left out."""
    try:
        lines = (directory / LEDGER).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AuthorityError(f"cannot read {directory / LEDGER}: {error.strerror}") from error
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Issued))
        except msgspec.MsgspecError:
            continue
    return found


def outstanding(directory: Path, issuer: x509.Certificate, now_s: float) -> dict[str, Issued]:
    """Principal -> its newest certificate, where that is of `issuer` and still valid."""
    newest = {entry.principal: entry for entry in read(directory)}
    name = issuer.subject.rfc4514_string()
    return {p: e for p, e in newest.items() if e.issuer == name and e.expires_s > now_s}

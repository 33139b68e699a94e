"""Which CAs are trusted: the roots in an identity's `ca.pem`, and those of a CA folder.

A CA folder holds the issuing CA. While another takes over, the one that comes lies in `next/`,
the one that goes in `previous/`; both are trusted meanwhile. Those that went lie in `retired-1/`
and so on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from control_plane.pki.files import AuthorityError

CA_CERTIFICATE = "ca.pem"
CA_KEY = "ca-key.pem"
NEXT = "next"
PREVIOUS = "previous"
RETIRED = "retired-"  # and a number


def read(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file; none where there is no file."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AuthorityError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise AuthorityError(f"{path} holds no PEM certificate") from error


def trusted(directory: Path) -> list[x509.Certificate]:
    """The CAs of a folder, the issuing one first."""
    places = (directory, directory / NEXT, directory / PREVIOUS)
    return [root for place in places for root in read(place / CA_CERTIFICATE)]


def retired(directory: Path) -> list[x509.Certificate]:
    """The CAs of a folder that are trusted no more."""
    places = sorted(directory.glob(f"{RETIRED}*"))
    return [root for place in places for root in read(place / CA_CERTIFICATE)]


def with_roots(
    held: Iterable[x509.Certificate], wanted: Iterable[x509.Certificate]
) -> list[x509.Certificate]:
    """`wanted` first, then what else is held."""
    return list({name_of(root): root for root in (*wanted, *held)}.values())


def without(
    held: Iterable[x509.Certificate], gone: Iterable[x509.Certificate]
) -> list[x509.Certificate]:
    names = {name_of(root) for root in gone}
    return [root for root in held if name_of(root) not in names]


def holds(held: Iterable[x509.Certificate], root: x509.Certificate) -> bool:
    return name_of(root) in {name_of(other) for other in held}


def name_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def pem_of(roots: Iterable[x509.Certificate]) -> bytes:
    return b"".join(root.public_bytes(serialization.Encoding.PEM) for root in roots)

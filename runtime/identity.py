"""Who this process is: a certificate with a SPIFFE-style URI, and the CA it trusts.

The URI is `spiffe://tradewind/<role>/<name>`, e.g. `spiffe://tradewind/edge/tokyo`. Peers are
authorised by role, not by host name. Processes: `edge`, `core`, `control`, `dns`, and `proxy` for
Envoy and gRPC clients. People: `viewer`, `operator`, `admin`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from runtime.errors import TradewindError

TRUST_DOMAIN = "tradewind"
_PREFIX = f"spiffe://{TRUST_DOMAIN}/"


class IdentityError(TradewindError):
    """A certificate, key or CA file is missing, unreadable or not one of ours."""


class Principal(msgspec.Struct, frozen=True):
    """The role and name that a certificate speaks for."""

    role: str
    name: str

    @property
    def uri(self) -> str:
        return f"{_PREFIX}{self.role}/{self.name}"

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> Principal:
        """From `spiffe://tradewind/<role>/<name>`, or raise `IdentityError`."""
        role, _, name = uri.removeprefix(_PREFIX).partition("/")
        if not uri.startswith(_PREFIX) or not role or not name or "/" in name:
            raise IdentityError(f"{uri!r} is not {_PREFIX}<role>/<name>")
        return cls(role, name)


class IdentityFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a process's identity lies; all three are PEM files."""

    certificate: Path
    key: Path
    ca: Path


class Renewed(Protocol):
    """Knows the newest identity from some files: see `runtime.identity_watch`."""

    @property
    def current(self) -> Identity: ...


class Identity(msgspec.Struct, frozen=True):
    """A loaded identity. `certificate_pem` may hold a chain, leaf first.

    Whoever opens connections keeps one of these and uses its `newest` for each.
    """

    principal: Principal
    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes
    files: IdentityFiles
    watch: Renewed | None = None

    @property
    def newest(self) -> Identity:
        """What its files hold now, where somebody watches them; else itself."""
        return self.watch.current if self.watch is not None else self

    def __repr__(self) -> str:
        return f"Identity({self.principal}, {self.files.certificate})"  # the key stays unsaid

    def leaf(self) -> x509.Certificate:
        """Its own certificate."""
        return _certificates(self.certificate_pem, str(self.files.certificate))[0]

    def check(self, now_s: float) -> None:
        """Raise `IdentityError` where the three files do not make a usable identity at `now_s`
        (Unix time): another key's certificate, a foreign CA, out of date."""
        chain = _certificates(self.certificate_pem, str(self.files.certificate))
        roots = _certificates(self.ca_pem, str(self.files.ca))
        try:
            key = serialization.load_pem_private_key(self.key_pem, None)
        except (ValueError, TypeError) as error:
            raise IdentityError(f"{self.files.key} is not a PEM key without a password") from error
        if key.public_key() != chain[0].public_key():
            raise IdentityError(
                f"{self.files.key} is not the key of {self.files.certificate}",
                hint="one of the two may not have been written yet",
            )
        now = datetime.fromtimestamp(now_s, UTC)
        if not chain[0].not_valid_before_utc <= now < chain[0].not_valid_after_utc:
            span = f"{chain[0].not_valid_before_utc} to {chain[0].not_valid_after_utc}"
            raise IdentityError(f"{self.files.certificate} is valid from {span} only")
        if issuer_in(chain[0], chain[1:], roots) is None:
            raise IdentityError(
                f"{self.files.certificate} is of no CA in {self.files.ca}",
                hint="one of the two may not have been written yet",
            )

    @classmethod
    def load(cls, files: IdentityFiles) -> Identity:
        parts = []
        for path in (files.certificate, files.key, files.ca):
            try:
                parts.append(path.read_bytes())
            except OSError as error:
                raise IdentityError(
                    f"cannot read {path}: {error.strerror}",
                    hint="`tradewind pki issue` makes a certificate, key and CA file",
                ) from error
        certificate, key, ca = parts
        return cls(
            principal_of_pem(certificate, str(files.certificate)), certificate, key, ca, files
        )


def issuer_in(
    leaf: x509.Certificate,
    between: list[x509.Certificate],
    roots: list[x509.Certificate],
) -> x509.Certificate | None:
    """The root that `leaf` goes back to, over those `between`; None: to none of them."""
    for step in (leaf, *between):
        for root in roots:
            if _issued(root, step):
                return root
        if not any(_issued(other, step) for other in between):
            return None
    return None


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _certificates(pem: bytes, source: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise IdentityError(f"{source} holds no PEM certificate") from error


def principal_of_pem(pem: bytes, source: str = "the certificate") -> Principal:
    """The principal named by the first certificate in `pem`."""
    try:
        return principal_of(x509.load_pem_x509_certificate(pem))
    except ValueError as error:
        raise IdentityError(f"{source} is not a PEM certificate") from error


def principal_of(certificate: x509.Certificate) -> Principal:
    """The principal named by a certificate's URI, or raise `IdentityError`."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise IdentityError("the certificate has no subject alternative name") from error
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(_PREFIX):
            return Principal.parse(uri)
    raise IdentityError(f"the certificate names no {_PREFIX}… URI")

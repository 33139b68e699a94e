"""Who this process is: a certificate with a SPIFFE-style URI, and the CA it trusts.

The URI is `spiffe://tradewind/<role>/<name>`, e.g. `spiffe://tradewind/edge/tokyo`. Peers are
authorised by role, not by host name. Processes: `edge`, `core`, `control`, `dns`, and `proxy` for
Envoy and gRPC clients. People: `viewer`, `operator`, `admin`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography import x509

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


class Identity(msgspec.Struct, frozen=True):
    """A loaded identity. `certificate_pem` may hold a chain, leaf first."""

    principal: Principal
    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes
    files: IdentityFiles

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

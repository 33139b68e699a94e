"""A small certificate authority for the overlay's tests and benchmark."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from runtime.identity import Identity, IdentityFiles, Principal

_DAY = datetime.timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """Issues certificates with a SPIFFE URI."""

    def __init__(self, name: str = "mesh CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name))
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * _DAY)
            .not_valid_after(now + 10 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @classmethod
    def from_identity(cls, identity: Identity) -> Authority:
        """A leaf that plays at being an authority."""
        authority = cls.__new__(cls)
        authority._key = load_pem_private_key(identity.key_pem, None)
        authority.certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
        return authority

    @property
    def is_root(self) -> bool:
        return self.certificate.issuer == self.certificate.subject

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        role: str,
        name: str,
        *,
        uri: str | None = None,
        days: tuple[float, float] = (-1, 1),
        trusted: bytes | None = None,
    ) -> Identity:
        """An identity valid from day days[0] to day days[1]; it trusts `trusted`, or this CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        principal = Principal(role, name)
        chain = b"" if self.is_root else self.pem
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(f"{role} {name}"))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * _DAY)
            .not_valid_after(now + days[1] * _DAY)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri or principal.uri)]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Identity(
            principal=principal,
            certificate_pem=certificate.public_bytes(Encoding.PEM) + chain,
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            ca_pem=trusted or self.pem,
            files=IdentityFiles(Path(), Path(), Path()),
        )

"""How to reach etcd: settings, and every mistake in them at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from runtime.validation import InvalidDocument, Problem

_ENDPOINT = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)"
    r":(?P<port>[0-9]{1,5})/?"
)
_ALLOWED = "host:port, http://host:port or https://host:port"

Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=600_000)]


class EtcdSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An etcd cluster, and how patient to be with it."""

    endpoints: tuple[str, ...]
    """Members' client addresses: `host:port`, or with `http://` or `https://` before it."""
    ca: Path | None = None
    """PEM file with the CA of etcd's certificates. Given, the connection is TLS."""
    certificate: Path | None = None
    """PEM file with our certificate (chain), for etcd's --client-cert-auth."""
    key: Path | None = None
    """PEM file with the certificate's key, not encrypted."""
    user: str = ""
    """etcd user, where etcd's own authentication is on."""
    password_file: Path | None = None
    """File with the user's password; read again whenever etcd asks for it anew."""
    call_timeout_ms: Milliseconds = 5000
    """The longest that one call takes, trying other members included."""
    attempt_timeout_ms: Milliseconds = 1000
    """How long one member may take to connect, or to answer a read, before another is asked.
    When all were too slow, the second round grants twice as much, and so on."""
    probe_after_ms: Milliseconds = 500
    """How long a write may be out before we ask whether the member is alive, and how long that
    answer may take. A write to a dead member is given up after twice this."""
    watch_quiet_ms: Milliseconds = 1000
    """After so much silence a watch asks whether its member is alive."""
    reconnect_max_ms: Milliseconds = 2000
    """The longest pause between a watch's attempts to find a member that answers."""


def addresses(settings: EtcdSettings) -> tuple[str, ...]:
    """The endpoints as `host:port`, each once. Raises `InvalidDocument` with every mistake in
    the settings, unreadable files included."""
    problems: list[Problem] = []
    found: dict[str, None] = {}
    if not settings.endpoints:
        problems.append(_problem("endpoints", "none", f"at least one {_ALLOWED}"))
    for index, endpoint in enumerate(settings.endpoints):
        match = _ENDPOINT.fullmatch(endpoint)
        path = f"endpoints[{index}]"
        if not match or not 1 <= int(match["port"]) <= 65535:
            problems.append(_problem(path, repr(endpoint)[:80], _ALLOWED))
        elif match["scheme"] == "https" and settings.ca is None:
            problems.append(_problem(path, endpoint, "http, or set `ca`"))
        elif match["scheme"] == "http" and settings.ca is not None:
            problems.append(_problem(path, endpoint, "https, or remove `ca`"))
        else:
            found[f"{match['host']}:{match['port']}"] = None
    problems += _tls_problems(settings) + _user_problems(settings)
    if problems:
        raise InvalidDocument(problems)
    return tuple(found)


def _tls_problems(settings: EtcdSettings) -> list[Problem]:
    if (settings.certificate is None) != (settings.key is None):
        return [_problem("certificate", "one of `certificate` and `key`", "both or none")]
    if settings.ca is None:
        if settings.certificate is None:
            return []
        return [_problem("ca", "nothing", "the CA's file, as `certificate` is set")]
    problems = _file_problems("ca", settings.ca, x509.load_pem_x509_certificates)
    if settings.certificate is None or settings.key is None:
        return problems
    bad = _file_problems("certificate", settings.certificate, x509.load_pem_x509_certificate)
    bad += _file_problems("key", settings.key, _load_key)
    if not bad:
        certificate = x509.load_pem_x509_certificate(settings.certificate.read_bytes())
        if certificate.public_key() != _load_key(settings.key.read_bytes()).public_key():
            bad.append(_problem("key", str(settings.key), "the key of `certificate`"))
    return problems + bad


def _user_problems(settings: EtcdSettings) -> list[Problem]:
    if bool(settings.user) != (settings.password_file is not None):
        return [_problem("user", "one of `user` and `password_file`", "both or none")]
    if settings.password_file is None:
        return []
    return _file_problems("password_file", settings.password_file, bytes.decode)


def _file_problems(path: str, file: Path, parse: Callable[[bytes], object]) -> list[Problem]:
    try:
        parse(file.read_bytes())
    except OSError as error:
        return [_problem(path, f"{file}: {error.strerror}", "a readable file")]
    except (ValueError, TypeError):
        kind = "UTF-8 text" if path == "password_file" else "a PEM file (a key without password)"
        return [_problem(path, str(file), kind)]
    return []


def _load_key(pem: bytes) -> PrivateKeyTypes:
    return load_pem_private_key(pem, password=None)


def _problem(path: str, found: str, allowed: str) -> Problem:
    return Problem("etcd", path, found, allowed)

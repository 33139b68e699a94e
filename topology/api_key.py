"""API keys: 256 random bits, known to us only by their digest."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "tw-"


def new_key() -> str:
    """A fresh key, to be shown once and never stored."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str | bytes) -> str:
    """What a `Tenant` holds of a key. SHA-256 is enough: see decision record 1."""
    data = key.encode() if isinstance(key, str) else key
    return "sha256:" + hashlib.sha256(data).hexdigest()

"""Who asks: from the Authorization header to a tenant.

Keys are stored as SHA-256 digests. The digest of a key that was seen recently is remembered
by the header's text, within a bound, and forgotten with every snapshot, so that a revoked key
stops working at once.
"""

from __future__ import annotations

from edge_node.errors import InvalidKey
from topology import api_key
from topology.snapshot import Snapshot

MAX_REMEMBERED = 4096
MAX_HEADER_CHARACTERS = 512


class Keyring:
    """API keys of one snapshot."""

    def __init__(self) -> None:
        self._snapshot = Snapshot.empty()
        self._known: dict[str, str] = {}

    def use(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known = {}

    def tenant(self, authorization: str | None) -> str:
        """The tenant that the header speaks for, or `InvalidKey`."""
        if authorization is None:
            raise InvalidKey(given=False)
        known = self._known.get(authorization)
        return known if known is not None else self._look_up(authorization)

    def _look_up(self, authorization: str) -> str:
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise InvalidKey(given=False)
        if len(authorization) > MAX_HEADER_CHARACTERS:
            raise InvalidKey(given=True)
        tenant = self._snapshot.tenant_of_key(api_key.digest(key))
        if tenant is None:
            raise InvalidKey(given=True)
        if len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[authorization] = tenant
        return tenant

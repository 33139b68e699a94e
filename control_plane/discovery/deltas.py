"""Snapshots in xDS's terms, and the difference between two of them. Pure.

Each resource is encoded once, and each difference once, however many nodes it is sent to: nodes
that hold the same versions get the same bytes.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping

from envoy.service.discovery.v3 import discovery_pb2 as discovery

from topology.resources import Key, Resource
from topology.snapshot import Snapshot
from topology.wire import codec

_KEPT = 8  # snapshots whose holders are recognised when they come back

_tokens = itertools.count(1)


class Held:
    """What a node holds: xDS name -> version. Equal tokens mean equal versions."""

    __slots__ = ("shared", "token", "versions")

    def __init__(self, versions: Mapping[str, str], *, shared: bool) -> None:
        self.versions = versions
        self.shared = shared  # many nodes hold it, so that its difference is worth keeping
        self.token = next(_tokens)


NOTHING = Held({}, shared=True)


class Encoded(Held):
    """A snapshot whose resources are packed."""

    __slots__ = ("entries", "snapshot")

    def __init__(self, snapshot: Snapshot, previous: Encoded | None) -> None:
        self.snapshot = snapshot
        self.entries: dict[str, discovery.Resource] = {}
        for resource in snapshot:
            name = str(resource.key)
            self.entries[name] = _packed_before(previous, name, resource) or codec.pack(resource)
        super().__init__({name: e.version for name, e in self.entries.items()}, shared=True)

    @property
    def revision(self) -> int:
        return self.snapshot.revision


def _packed_before(
    previous: Encoded | None, name: str, resource: Resource
) -> discovery.Resource | None:
    if previous is None or previous.snapshot.get(Key.parse(name)) is not resource:
        return None
    return previous.entries[name]


class Deltas:
    """The snapshot to serve now, and the difference to it from whatever a node holds."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.current = Encoded(snapshot, None)
        self._recent: OrderedDict[int, Encoded] = OrderedDict()
        self._bodies: dict[int, bytes] = {}
        self._remember(self.current)

    def publish(self, snapshot: Snapshot) -> None:
        if snapshot is self.current.snapshot:
            return
        self.current = Encoded(snapshot, self.current)
        self._bodies.clear()
        self._remember(self.current)

    def recognise(self, versions: Mapping[str, str]) -> Held:
        """What a node that comes back holds: one of our recent snapshots, or something else."""
        if not versions:
            return NOTHING
        for encoded in reversed(self._recent.values()):
            if len(encoded.versions) == len(versions) and encoded.versions == versions:
                return encoded
        return Held(dict(versions), shared=False)

    def body(self, held: Held) -> bytes:
        """A response, serialised, that turns `held` into the current snapshot.

        Without nonce and origin: those are appended, since in protobuf's encoding a message
        followed by another of its type is both of them merged.
        """
        body = self._bodies.get(held.token)
        if body is None:
            body = bytes(_difference(held, self.current).SerializeToString())
            if held.shared:
                self._bodies[held.token] = body
        return body

    def _remember(self, encoded: Encoded) -> None:
        self._recent[encoded.token] = encoded
        while len(self._recent) > _KEPT:
            self._recent.popitem(last=False)


def notice(revision: int) -> bytes:
    """A response that changes nothing: it tells a node that it is heard, and by whom."""
    response = discovery.DeltaDiscoveryResponse(
        system_version_info=str(revision), type_url=codec.TYPE_URL
    )
    return bytes(response.SerializeToString())


def _difference(held: Held, target: Encoded) -> discovery.DeltaDiscoveryResponse:
    changed = [
        entry for name, entry in target.entries.items() if held.versions.get(name) != entry.version
    ]
    return discovery.DeltaDiscoveryResponse(
        system_version_info=str(target.revision),
        type_url=codec.TYPE_URL,
        resources=changed,
        removed_resources=[name for name in held.versions if name not in target.versions],
    )

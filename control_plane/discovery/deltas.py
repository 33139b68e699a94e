"""Snapshots in xDS's terms, and the difference between two of them. Pure.

While a rollout is under way there are two of them: the newest, and what nodes beyond its stage are
served. Each node gets one or the other, never a mixture.

Each resource is encoded once, and each difference once, however many nodes it is sent to: nodes
that hold the same versions get the same bytes.
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Mapping

import msgspec
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.rollout_record import RolloutRecord, snapshot_before
from runtime import logs
from runtime.validation import InvalidDocument
from topology.resources import Key, Resource
from topology.snapshot import Snapshot
from topology.wire import codec
from topology.wire.subscription import Origin

log = logs.get("discovery")

_KEPT = 16  # snapshots whose holders are recognised when they come back

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
        self.before: Encoded | None = None  # for nodes beyond the stage of `rollout`
        self.rollout: RolloutRecord | None = None  # under way; another object once it moved on
        self._recent: OrderedDict[int, Encoded] = OrderedDict()
        self._bodies: dict[tuple[int, int], bytes] = {}
        self._remember(self.current)

    def publish(self, snapshot: Snapshot, rollout: RolloutRecord | None = None) -> bool:
        """Serve this from now on. False: nobody is served anything else than until now."""
        rollout = rollout if rollout is not None and rollout.under_way else None
        new_head = snapshot is not self.current.snapshot
        if not new_head and _stage(rollout) == _stage(self.rollout):
            return False
        last = self.current
        if new_head:
            self.current = Encoded(snapshot, last)
            self._remember(self.current)
        if rollout is None:
            self.before = None
        elif new_head or self.before is None or _base(rollout) != _base(self.rollout):
            self.before = self._encode_before(rollout, last)
        self.rollout = rollout
        self._bodies.clear()
        return True

    def for_principal(self, principal: str) -> Encoded:
        """What nodes with this principal are served."""
        if self.rollout is None or self.before is None or self.rollout.has(principal):
            return self.current
        return self.before

    def _encode_before(self, rollout: RolloutRecord, last: Encoded) -> Encoded:
        try:
            before = snapshot_before(rollout, self.current.snapshot)
        except InvalidDocument as error:  # nobody could have written it through the admin API
            log.error("what was before the rollout does not fit together", reason=str(error))
            if self.before is not None:
                return self.before
            return last if 0 < last.revision < rollout.revision else self.current
        encoded = Encoded(before, self.current)
        for known in reversed(self._recent.values()):
            if known.revision <= before.revision and known.versions == encoded.versions:
                return known  # nodes hold it: nothing to tell them
        self._remember(encoded)
        return encoded

    def recognise(self, versions: Mapping[str, str]) -> Held:
        """What a node that comes back holds: one of our recent snapshots, or something else."""
        if not versions:
            return NOTHING
        for encoded in reversed(self._recent.values()):
            if len(encoded.versions) == len(versions) and encoded.versions == versions:
                return encoded
        return Held(dict(versions), shared=False)

    def body(self, held: Held, target: Encoded) -> bytes:
        """A response, serialised, that turns `held` into `target`.

        Without nonce and origin: those are appended, since in protobuf's encoding a message
        followed by another of its type is both of them merged.
        """
        key = (held.token, target.token)
        body = self._bodies.get(key)
        if body is None:
            body = bytes(_difference(held, target).SerializeToString())
            if held.shared:
                self._bodies[key] = body
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


def tail(nonce: str, origin: Origin) -> bytes:
    """What a response's body is followed by. Each node has its own, so it is put together by
    hand: `nonce` is field 5 of DeltaDiscoveryResponse, and shorter than 128 bytes."""
    told = nonce.encode()
    return b"".join((b"\x2a", bytes((len(told),)), told, _told_of(origin)))


@functools.lru_cache(maxsize=8)
def _told_of(origin: Origin) -> bytes:
    response = discovery.DeltaDiscoveryResponse()
    response.control_plane.identifier = msgspec.json.encode(origin).decode()
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


def _stage(rollout: RolloutRecord | None) -> tuple[object, ...] | None:
    """All of a rollout that decides who is served what."""
    if rollout is None:
        return None
    return (*_base(rollout), rollout.percent, rollout.canaries)


def _base(rollout: RolloutRecord | None) -> tuple[object, ...]:
    """All of a rollout that decides what the others are served."""
    if rollout is None:
        return ()
    return (rollout.number, rollout.revision, rollout.base_revision, rollout.before)

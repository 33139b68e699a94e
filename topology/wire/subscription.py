"""The client's half of delta xDS, without a socket: a response in, an ACK or a NACK out.

One response carries everything that changed between what the node holds and one revision, and
`system_version_info` is that revision in decimal. So a response is a snapshot: it is taken whole
or not at all. A response that is wrong in any way leaves the old snapshot in place and is
answered with a NACK whose `error_detail` names every mistake.

The duties of the shell around it:
1. Send `open()` first on every new stream, and nothing else before a response came.
2. Hand every response to `receive`, in order, and send the request that it returns.
3. Keep the subscription across streams: `open()` tells the next server what is held already.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from google.rpc import code_pb2, status_pb2

from runtime.errors import TradewindError
from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import Key, Resource
from topology.snapshot import Snapshot
from topology.wire import codec

# error_detail travels in a request: long enough for a person, short enough for any server.
REASON_MAX_CHARACTERS = 8_000
HELD_REVISION = "revision"  # in node.metadata: the revision of the snapshot held

Adopt = Callable[[Snapshot], None]


class Origin(msgspec.Struct, frozen=True):
    """Who sent a response: `control_plane.identifier`, which we fill with JSON."""

    replica: str = ""
    stale_since_s: float | None = None  # Unix time; None while the replica reaches its store


class Received(msgspec.Struct, frozen=True):
    """What became of a response. `snapshot` is None where it was refused or changed nothing."""

    request: discovery.DeltaDiscoveryRequest
    snapshot: Snapshot | None
    error: str  # why it was refused; empty: acknowledged
    origin: Origin


class Subscription:
    """A wildcard subscription of one node to all resources of our type."""

    def __init__(self, node_id: str, snapshot: Snapshot | None = None) -> None:
        self.node_id = node_id
        self.snapshot = snapshot if snapshot is not None else Snapshot.empty()
        self.synchronised = False  # this stream has delivered; the snapshot is the server's
        self._versions: dict[str, str] = {
            str(resource.key): codec.version_of(res.encode(resource)) for resource in self.snapshot
        }

    def open(self) -> discovery.DeltaDiscoveryRequest:
        """The first request of a stream: who we are and what we hold already."""
        self.synchronised = False
        request = discovery.DeltaDiscoveryRequest(type_url=codec.TYPE_URL)
        request.node.id = self.node_id
        request.node.user_agent_name = "tradewind"
        request.node.metadata[HELD_REVISION] = str(self.snapshot.revision)
        request.resource_names_subscribe.append("*")
        request.initial_resource_versions.update(self._versions)
        return request

    def receive(
        self, response: discovery.DeltaDiscoveryResponse, adopt: Adopt | None = None
    ) -> Received:
        """Take a response whole, or refuse it.

        `adopt` sees the new snapshot before it is acknowledged; a `TradewindError` from it is
        a refusal like any other.
        """
        origin = _origin(response.control_plane.identifier)
        try:
            candidate, versions = self._candidate(response)
            if adopt is not None and candidate is not None:
                adopt(candidate)
        except TradewindError as error:
            reason = str(error)
            return Received(self._answer(response, reason), None, reason, origin)
        self._versions = versions
        self.synchronised = True
        if candidate is not None:
            self.snapshot = candidate
        return Received(self._answer(response, ""), candidate, "", origin)

    def _candidate(
        self, response: discovery.DeltaDiscoveryResponse
    ) -> tuple[Snapshot | None, dict[str, str]]:
        problems: list[Problem] = []
        if response.type_url != codec.TYPE_URL:
            problems.append(
                Problem("response", "type_url", repr(response.type_url), codec.TYPE_URL)
            )
        revision = _revision(response.system_version_info, problems)
        puts = _unpack_all(response, problems)
        if problems:
            raise InvalidDocument(problems)
        versions = dict(self._versions)
        for name in response.removed_resources:
            versions.pop(name, None)
        versions.update((entry.name, entry.version) for entry in response.resources)
        if revision == self.snapshot.revision and versions == self._versions:
            return None, versions
        removed = [Key.parse(name) for name in response.removed_resources]
        return self.snapshot.changed(revision, puts, removed), versions

    def _answer(
        self, response: discovery.DeltaDiscoveryResponse, reason: str
    ) -> discovery.DeltaDiscoveryRequest:
        request = discovery.DeltaDiscoveryRequest(
            type_url=response.type_url or codec.TYPE_URL, response_nonce=response.nonce
        )
        if reason:
            request.error_detail.CopyFrom(
                status_pb2.Status(
                    code=code_pb2.INVALID_ARGUMENT, message=reason[:REASON_MAX_CHARACTERS]
                )
            )
        return request


def _revision(text: str, problems: list[Problem]) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 19:
        return int(text)
    found = repr(text[:40])
    problems.append(Problem("response", "system_version_info", found, "a revision, in decimal"))
    return 0


def _unpack_all(
    response: discovery.DeltaDiscoveryResponse, problems: list[Problem]
) -> list[Resource]:
    """Every resource of a kind we know; a kind we do not know is for newer nodes than us."""
    puts = []
    for entry in response.resources:
        try:
            puts.append(codec.unpack(entry))
        except InvalidDocument as error:
            problems.extend(error.problems)
        except codec.UnknownKind:
            continue
    return puts


def _origin(identifier: str) -> Origin:
    try:
        return msgspec.json.decode(identifier, type=Origin)
    except msgspec.MsgspecError:
        return Origin(replica=identifier)

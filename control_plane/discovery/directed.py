"""What the director tells each node, in xDS's terms. Pure.

Most of what it says is the same for many nodes: it is encoded once for all nodes that are told
the same, and a new word of the director's reaches only those for whom something changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from msgspec import Struct

from control_plane.directives.state import State, directive_for
from topology import directive as directives
from topology.directive import Directive
from topology.wire import codec
from topology.wire.codec import DirectiveVersion


class Changed(Struct, frozen=True):
    """Whose directive a new state changes: everybody's, some edges', some nodes'."""

    everyone: bool
    edges: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()

    def concerns(self, node: str) -> bool:
        return (
            self.everyone or node in self.nodes or (bool(self.edges) and _edge(node) in self.edges)
        )


class Directed:
    """The state to tell now, from `publish`. `fresh`: it is what the store holds."""

    def __init__(self) -> None:
        self.state = State()
        self.fresh = False
        self._quota_nodes: frozenset[str] = frozenset()
        self._encoded: dict[tuple[str, str], tuple[DirectiveVersion, bytes]] = {}

    def publish(self, state: State, *, fresh: bool) -> Changed:
        """Take a new state, and say whom it concerns."""
        changed = changes(self.state, state)
        self.state = state
        self.fresh = fresh
        self._quota_nodes = frozenset(
            node for quota in state.quotas.values() for node in (*quota.given, *quota.floors)
        )
        self._encoded.clear()
        return changed

    @property
    def exists(self) -> bool:
        """A director has spoken."""
        return self.state.number > 0

    def holds(self, node: str, version: DirectiveVersion) -> bool:
        """Whether a node that holds `version` holds what it is to be told now.

        The number counts where the director waits for the node to acknowledge one at least as
        high: see `State.numbers`. Elsewhere it rises with everybody's, and only content counts.
        """
        now = self.version_for(node)
        if version.number < self.state.numbers.get(node, 0):
            return False
        return version.term == now.term and version.digest == now.digest

    def version_for(self, node: str) -> DirectiveVersion:
        return self._content(node)[0]

    def body(self, node: str) -> bytes:
        """A response, serialised, that tells `node` what holds now; without nonce and origin."""
        version, json = self._content(node)
        entry = codec.pack_directive(node, json, version)
        response = discovery.DeltaDiscoveryResponse(
            system_version_info=str(version.number),
            type_url=codec.DIRECTIVE_TYPE_URL,
            resources=[entry],
        )
        return bytes(response.SerializeToString())

    def _content(self, node: str) -> tuple[DirectiveVersion, bytes]:
        edge = _edge(node)
        of_edge = edge if edge in self.state.shares or edge in self.state.shed else ""
        own = node in self._quota_nodes or node in self.state.numbers
        key = (of_edge, node if own else "")
        held = self._encoded.get(key)
        if held is None:
            held = self._encoded[key] = _encode(self.state, node)
        return held


def withdrawal(node: str) -> bytes:
    """A response that takes back whatever `node` was told."""
    response = discovery.DeltaDiscoveryResponse(
        system_version_info="0", type_url=codec.DIRECTIVE_TYPE_URL, removed_resources=[node]
    )
    return bytes(response.SerializeToString())


def changes(before: State, after: State) -> Changed:
    """Whose directive differs between two states."""
    if (before.number == 0) != (after.number == 0) or _for_all(before) != _for_all(after):
        return Changed(everyone=True)
    edges = _differing(before.shares, after.shares) | _differing(before.shed, after.shed)
    nodes = _differing(before.numbers, after.numbers)
    for tenant in before.quotas.keys() | after.quotas.keys():
        old, new = before.quotas.get(tenant), after.quotas.get(tenant)
        nodes |= _differing(old.given if old else {}, new.given if new else {})
        nodes |= _differing(old.floors if old else {}, new.floors if new else {})
    return Changed(False, frozenset(edges), frozenset(nodes))


def _encode(state: State, node: str) -> tuple[DirectiveVersion, bytes]:
    told = msgspec.structs.replace(directive_for(state, node), node="")
    bare = directives.encode(msgspec.structs.replace(told, number=0))
    digest = hashlib.blake2b(bare, digest_size=8).hexdigest()
    return DirectiveVersion(told.term, told.number, digest), directives.encode(told)


def _for_all(state: State) -> Directive:
    """What everybody is told: the directive of a node that is nobody in particular."""
    return msgspec.structs.replace(directive_for(state, ""), number=0)


def _differing(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    if before == after:
        return set()
    gone = before.keys() - after.keys()
    return gone | {name for name, value in after.items() if before.get(name) != value}


def _edge(node: str) -> str:
    role, _, rest = node.partition("/")
    return rest.partition("/")[0] if role == "edge" else ""

"""Resources in xDS's own terms: names, versions and the `Any` they travel in.

A resource's xDS name is `Kind/name` and its version a hash of its JSON, so that replicas agree
on it without talking to each other and a node can work it out from what it has on disk.
"""

from __future__ import annotations

import hashlib

import msgspec
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from google.protobuf.message import DecodeError

from runtime.validation import InvalidDocument, Problem
from topology import directive as directives
from topology import resources as res
from topology.directive import Directive
from topology.resources import Resource
from topology.wire.gen.tradewind.v1 import resource_pb2

TYPE_URL = "type.googleapis.com/tradewind.v1.Resource"
DIRECTIVE_TYPE_URL = "type.googleapis.com/tradewind.v1.Directive"

# The whole of a snapshot travels in one response: the largest that either end accepts.
MAX_RESPONSE_BYTES = 64 * 2**20
# What a node or an operator sends: at most a transaction, or the versions of all it holds.
MAX_REQUEST_BYTES = 16 * 2**20
# The name every control-plane certificate carries and no other role's does.
CONTROL_PLANE_NAME = "control.tradewind.internal"


class UnknownKind(Exception):
    """The other end is newer and speaks of a kind that this end does not know."""


def version_of(json: bytes) -> str:
    """16 hex digits that change whenever the resource does."""
    return hashlib.blake2b(json, digest_size=8).hexdigest()


def pack(resource: Resource) -> discovery.Resource:
    """The resource as an entry of a delta response."""
    json = res.encode(resource)
    inner = resource_pb2.Resource(kind=resource.kind, name=resource.name, json=json)
    entry = discovery.Resource(name=str(resource.key), version=version_of(json))
    entry.resource.type_url = TYPE_URL
    entry.resource.value = inner.SerializeToString()
    return entry


def unpack(entry: discovery.Resource) -> Resource:
    """The reverse of `pack`; raises `InvalidDocument`, or `UnknownKind`."""
    inner = resource_pb2.Resource()
    if entry.resource.type_url != TYPE_URL:
        raise InvalidDocument(
            [Problem(entry.name, "type_url", repr(entry.resource.type_url), TYPE_URL)]
        )
    try:
        inner.ParseFromString(entry.resource.value)
    except DecodeError as error:
        raise InvalidDocument([Problem(entry.name, "", str(error), "a resource")]) from error
    if inner.kind not in res.KINDS:
        raise UnknownKind(inner.kind)
    resource = res.decode(inner.json, entry.name)
    if str(resource.key) != entry.name:
        raise InvalidDocument(
            [Problem(entry.name, "name", str(resource.key), "the name it travels under")]
        )
    return resource


class DirectiveVersion(msgspec.Struct, frozen=True):
    """A directive's xDS version: `term.number.digest`. The digest is of all but the number."""

    term: int = 0
    number: int = 0
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.term}.{self.number}.{self.digest}"

    @classmethod
    def parse(cls, text: str) -> DirectiveVersion:
        """The reverse of `str`; what is no version is one older than all others."""
        term, _, rest = text[:80].partition(".")
        number, _, digest = rest.partition(".")
        if not all(t.isascii() and t.isdigit() and len(t) < 20 for t in (term, number)):
            return cls()
        return cls(int(term), int(number), digest)


def pack_directive(node: str, json: bytes, version: DirectiveVersion) -> discovery.Resource:
    """A directive as an entry of a delta response. `json` leaves out the node, which is named
    beside it: so nodes that are told the same share it."""
    inner = resource_pb2.Directive(node=node, json=json)
    entry = discovery.Resource(name=node, version=str(version))
    entry.resource.type_url = DIRECTIVE_TYPE_URL
    entry.resource.value = inner.SerializeToString()
    return entry


def unpack_directive(entry: discovery.Resource) -> Directive:
    """The reverse of `pack_directive`; raises `InvalidDocument`."""
    inner = resource_pb2.Directive()
    if entry.resource.type_url != DIRECTIVE_TYPE_URL:
        raise InvalidDocument(
            [Problem(entry.name, "type_url", repr(entry.resource.type_url), DIRECTIVE_TYPE_URL)]
        )
    try:
        inner.ParseFromString(entry.resource.value)
    except DecodeError as error:
        raise InvalidDocument([Problem(entry.name, "", str(error), "a directive")]) from error
    if inner.node != entry.name:
        raise InvalidDocument(
            [Problem(entry.name, "node", repr(inner.node[:100]), "the name it travels under")]
        )
    directive = directives.decode(inner.json, entry.name)
    return msgspec.structs.replace(directive, node=inner.node)

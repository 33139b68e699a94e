"""Resources in xDS's own terms: names, versions and the `Any` they travel in.

A resource's xDS name is `Kind/name` and its version a hash of its JSON, so that replicas agree
on it without talking to each other and a node can work it out from what it has on disk.
"""

from __future__ import annotations

import hashlib

from envoy.service.discovery.v3 import discovery_pb2 as discovery
from google.protobuf.message import DecodeError

from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import Resource
from topology.wire.gen.tradewind.v1 import resource_pb2

TYPE_URL = "type.googleapis.com/tradewind.v1.Resource"

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

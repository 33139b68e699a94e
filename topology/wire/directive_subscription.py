"""The node's half of the director's word on xDS, without a socket: see `topology.directive`.

A node subscribes to the one resource that bears its name. What it holds outlives the stream: the
first request of the next one says which version that is. A directive of a lower number comes from
a replica that lags behind: it is refused with a NACK, since an ACK would say that it is in force.
The number alone decides: it rises from one director to the next, and stays above Unix time where
the store was wiped, while terms are the store's revisions and begin again with it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from google.rpc import code_pb2, status_pb2

from runtime.errors import TradewindError
from runtime.validation import InvalidDocument, Problem
from topology.directive import NONE, Directive
from topology.wire import codec

REASON_MAX_CHARACTERS = 2_000

Adopt = Callable[[Directive], None]


class Outdated(TradewindError):
    """The directive is older than the one held."""


class Received(msgspec.Struct, frozen=True):
    """What became of a response. `directive` is None where it was refused or changed nothing."""

    request: discovery.DeltaDiscoveryRequest
    directive: Directive | None
    error: str  # why it was refused; empty: acknowledged


class Kept(msgspec.Struct, frozen=True):
    """A directive as it lies on the node's disk."""

    version: str
    directive: Directive


class DirectiveSubscription:
    """One node's subscription to its own directive."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.directive = NONE
        self._version = ""

    def open(self) -> discovery.DeltaDiscoveryRequest:
        """The first request of this type on a stream, after the first response of the other."""
        request = discovery.DeltaDiscoveryRequest(type_url=codec.DIRECTIVE_TYPE_URL)
        request.resource_names_subscribe.append(self.node_id)
        if self._version:
            request.initial_resource_versions[self.node_id] = self._version
        return request

    def receive(
        self, response: discovery.DeltaDiscoveryResponse, adopt: Adopt | None = None
    ) -> Received:
        """Take a response or refuse it. A `TradewindError` from `adopt` is a refusal too."""
        try:
            version, directive = self._candidate(response)
            if adopt is not None and directive is not None:
                adopt(directive)
        except TradewindError as error:
            return Received(self._answer(response, str(error)), None, str(error))
        if directive is not None:
            self._version, self.directive = version, directive
        return Received(self._answer(response, ""), directive, "")

    def encode(self) -> bytes:
        """What is held, for the disk."""
        return msgspec.json.encode(Kept(self._version, self.directive))

    def restore(self, data: bytes, source: str, adopt: Adopt | None = None) -> None:
        """Take up what was kept. Raises `InvalidDocument`, and what `adopt` raises."""
        try:
            kept = msgspec.json.decode(data, type=Kept)
        except msgspec.MsgspecError as error:
            raise InvalidDocument([Problem(source, "", str(error), "a directive")]) from error
        if kept.directive.node != self.node_id:
            found = repr(kept.directive.node[:100])
            raise InvalidDocument([Problem(source, "node", found, repr(self.node_id))])
        if adopt is not None:
            adopt(kept.directive)
        self._version, self.directive = kept.version, kept.directive

    def _candidate(
        self, response: discovery.DeltaDiscoveryResponse
    ) -> tuple[str, Directive | None]:
        names = [entry.name for entry in response.resources]
        foreign = {*names, *response.removed_resources} - {self.node_id}
        if foreign or len(names) + len(response.removed_resources) > 1:
            found = ", ".join(sorted(foreign))[:200] or f"{len(names)} directives"
            raise InvalidDocument(
                [Problem("response", "resources", found, f"the directive of {self.node_id}")]
            )
        if response.removed_resources:
            return "", NONE
        if not response.resources:
            return "", None
        entry = response.resources[0]
        directive = codec.unpack_directive(entry)
        if directive.number < self.directive.number:
            raise Outdated(
                f"directive {directive.number} of term {directive.term} is older than what is held:"
                f" {self.directive.number} of term {self.directive.term}"
            )
        return entry.version, directive

    def _answer(
        self, response: discovery.DeltaDiscoveryResponse, reason: str
    ) -> discovery.DeltaDiscoveryRequest:
        request = discovery.DeltaDiscoveryRequest(
            type_url=codec.DIRECTIVE_TYPE_URL, response_nonce=response.nonce
        )
        if reason:
            request.error_detail.CopyFrom(
                status_pb2.Status(
                    code=code_pb2.INVALID_ARGUMENT, message=reason[:REASON_MAX_CHARACTERS]
                )
            )
        return request

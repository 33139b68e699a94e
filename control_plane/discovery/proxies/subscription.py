"""One resource type of one stream: what the proxy asked for, holds, and has been sent. Pure.

State-of-the-world and delta xDS differ in how requests and responses are written, and in little
else: both are brought to the terms of this file by `control_plane.discovery.proxies.session`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from control_plane.discovery.errors import InvalidSubscription
from control_plane.discovery.proxies.translation import Packed

ALL = "*"
NAMES_MAX = 4_096  # per type and stream
NAME_CHARACTERS_MAX = 2_048


class InFlight(Struct, frozen=True):
    """A response that is neither accepted nor refused yet."""

    nonce: str
    holds: dict[str, str]  # name -> version, once it accepts
    digest: str  # of what was to be held
    revision: int  # to name if it is refused
    sent_s: float
    clusters: frozenset[str]  # that its routes name; for routes only


class Subscription:
    """`wildcard`: everything there is. `held`: name -> version, as acknowledged."""

    def __init__(self) -> None:
        self.wildcard = False
        self.names: dict[str, None] = {}
        self.held: dict[str, str] = {}
        self.in_flight: InFlight | None = None
        self.last_nonce = ""
        self.refused = ""  # the digest of what it refused last
        self.refused_revision = 0
        self.owed = True  # an answer is expected even if there is nothing new
        self.asked_anew: dict[str, None] = {}  # names that a delta response must give or deny
        self._known = ""  # the digest that it says it holds, from before this stream
        self.came_with = 0  # the revision of what it says it holds, from before this stream

    def ask_delta(self, request: Any, *, first: bool, everything: bool) -> None:
        """Take a DeltaDiscoveryRequest's names. `everything`: what it asks for if it names none."""
        named = list(request.resource_names_subscribe)
        if first:
            said = request.initial_resource_versions
            self.held = {name: of_wire(version)[0] for name, version in said.items()}
            self.came_with = max((of_wire(v)[1] for v in said.values()), default=0)
            self.wildcard = everything and not named
            if len(self.held) > NAMES_MAX:
                raise InvalidSubscription(f"more than {NAMES_MAX} resources of one type")
        self._want(named)
        self._forget(request.resource_names_unsubscribe)
        for name in named:
            self.owed = True
            if name != ALL and not (first and name in self.held):
                self.asked_anew[name] = None

    def ask_whole(self, request: Any, *, first: bool, everything: bool, repeated: bool) -> None:
        """Take a DiscoveryRequest's names. `repeated`: it answers nothing."""
        named = list(request.resource_names)
        before, was_wildcard = self.names, self.wildcard
        self.names = {}
        self.wildcard = (everything or was_wildcard) and not named and not before
        self._want(named)
        if first:
            self._known, self.came_with = of_wire(request.version_info)
        elif repeated and self.names == before and self.wildcard == was_wildcard:
            self.owed = True  # the same again: it dropped what it held, and asks anew
        elif any(name not in before for name in self.names):
            self.owed = True

    def take_known(self, target: Mapping[str, Packed], digested: str) -> bool:
        """Whether the proxy came back with just this: then it need not be sent again."""
        known, self._known = self._known, ""
        if not known or known != digested:
            return False
        self.held = {name: packed.version for name, packed in target.items()}
        self.owed = False
        return True

    def is_refused(self, digested: str) -> bool:
        """Whether it refused just this; it is not asked twice unless it asks itself."""
        return digested == self.refused and not self.owed

    def _want(self, names: Iterable[str]) -> None:
        """Names that are asked for, beside those that were; raises `InvalidSubscription`."""
        for name in names:
            if name == ALL:
                self.wildcard = True
                continue
            if len(name) > NAME_CHARACTERS_MAX:
                raise InvalidSubscription(f"the resource name {name[:100]!r}… is too long")
            self.names[name] = None
        if len(self.names) > NAMES_MAX:
            raise InvalidSubscription(f"more than {NAMES_MAX} names of one type")

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            if name == ALL:
                self.wildcard = False
            self.names.pop(name, None)
            self.asked_anew.pop(name, None)
            if not self.wildcard:
                self.held.pop(name, None)

    def target(self, there: Mapping[str, Packed]) -> dict[str, Packed]:
        """Of what there is, what it asked for."""
        if self.wildcard:
            return dict(there)
        return {name: there[name] for name in self.names if name in there}

    def answer(self, nonce: str, *, accepted: bool) -> InFlight | None:
        """The response that is answered now, if `nonce` is that of the one in flight."""
        sent = self.in_flight
        if sent is None or nonce != sent.nonce:
            return None
        self.in_flight = None
        if accepted:
            self.held = sent.holds
            self.refused, self.refused_revision = "", 0
        else:
            self.refused, self.refused_revision = sent.digest, sent.revision
        return sent

    def settled(self, target: Mapping[str, Packed]) -> bool:
        """Whether it holds the target, and has said so."""
        if self.in_flight is not None or self.owed or len(self.held) != len(target):
            return False
        return all(self.held.get(name) == packed.version for name, packed in target.items())


def to_wire(version: str, revision: int) -> str:
    """A version as proxies keep it: what it is a version of, and from when."""
    return f"{version}.{revision}"


def of_wire(text: str) -> tuple[str, int]:
    """The reverse of `to_wire`; of anything else, revision 0."""
    version, _, revision = text.partition(".")
    good = revision.isascii() and revision.isdigit() and len(revision) < 20
    return version, int(revision) if good else 0


def digest(target: Mapping[str, Packed]) -> str:
    """One version for a set of resources: what state-of-the-world responses carry."""
    text = "\n".join(f"{name} {target[name].version}" for name in sorted(target))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

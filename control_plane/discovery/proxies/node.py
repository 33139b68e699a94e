"""What a proxy says about itself when it connects. Pure.

Envoy and gRPC send a `node` in their first request; it comes from their bootstrap. Everything in
it is checked here, so that what is translated for them is well-formed.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from control_plane.discovery.errors import InvalidSubscription, NotAllowed
from runtime.identity import Principal

DEFAULT_LISTEN = "0.0.0.0:10000"
_MAX_CHARACTERS = 255
_GRPC = "gRPC"  # how user_agent_name begins in every gRPC library

Flavour: TypeAlias = Literal["envoy", "grpc"]


class Profile(Struct, frozen=True):
    """What the translation for a proxy depends on; proxies with equal ones get equal resources.

    `place`: the EdgeSite or Region that it is at, "" where it says none. `tenant`: whose requests
    it carries where it carries nobody else's. `upstream`: what the endpoints speak to it.
    """

    flavour: Flavour
    place: str = ""
    tenant: str = ""
    listen: tuple[str, int] = ("0.0.0.0", 10000)  # its operator may narrow it
    upstream: Literal["http1", "http2"] = "http1"


def check_node_id(node_id: str, principal: Principal) -> str:
    """The id of a proxy is its principal, and `/<instance>` where there are several."""
    own = str(principal)
    instance = node_id.removeprefix(f"{own}/")
    good = instance != node_id and 0 < len(instance) <= 63 and "/" not in instance
    if node_id != own and not good:
        raise NotAllowed(
            f"node {node_id[:100]!r} with the certificate of {own}",
            hint=f"node.id must be {own!r}, or {own + '/<instance>'!r}",
        )
    return node_id


def profile_of(node: Any) -> Profile:
    """From an `envoy.config.core.v3.Node`; raises `InvalidSubscription`."""
    metadata = node.metadata.fields
    place = _text(metadata, "edge") or node.locality.region
    if len(place) > _MAX_CHARACTERS:
        raise InvalidSubscription("node.locality.region is too long", hint="an EdgeSite's name")
    upstream = _text(metadata, "upstream") or "http1"
    if upstream not in ("http1", "http2"):
        raise _invalid("upstream", upstream, "'http1' or 'http2'")
    grpc = node.user_agent_name.startswith(_GRPC)
    return Profile(
        flavour="grpc" if grpc else "envoy",
        place=place,
        tenant=_text(metadata, "tenant"),
        listen=_address(_text(metadata, "listen") or DEFAULT_LISTEN),
        upstream="http2" if upstream == "http2" else "http1",
    )


def _text(metadata: Any, field: str) -> str:
    if field not in metadata:
        return ""
    value = metadata[field]
    if value.WhichOneof("kind") != "string_value":
        raise _invalid(field, str(value).strip(), "a text")
    text: str = value.string_value
    if len(text) > _MAX_CHARACTERS:
        raise _invalid(field, text, f"at most {_MAX_CHARACTERS} characters")
    return text


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise _invalid("listen", listen, "<IP address>:<port>") from error
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        raise _invalid("listen", listen, "<IP address>:<port>, port 1 to 65535")
    return str(address), int(port)


def _invalid(field: str, found: str, allowed: str) -> InvalidSubscription:
    return InvalidSubscription(
        f"node.metadata.{field} is {found[:100]!r}", hint=f"it must be {allowed}"
    )

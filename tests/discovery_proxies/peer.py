"""A proxy that follows the protocol, without a socket."""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.session import ProxySession
from control_plane.discovery.proxies.spread import World
from control_plane.discovery.proxies.translation import (
    CLUSTER,
    ENDPOINTS,
    TYPES,
    Bundle,
    Translator,
)
from runtime.identity import Principal
from tests.discovery_proxies.worlds import tenant, world
from topology.resources import Resource

PROFILE = Profile("envoy", place="tokyo")


def translate(here: World, profile: Profile) -> Bundle:
    return Translator(here).bundle_for(profile)


def bundle(*more: Resource) -> Bundle:
    return translate(world(*more), PROFILE)


def retiered(tier: str) -> Bundle:
    """A world in which acme's requests are of another class, and so go to another cluster."""
    return bundle(tenant("acme", tier=tier, models=["smol"]))


class Peer:
    """A proxy that follows the protocol; `delta` says which of the two."""

    def __init__(self, *, delta: bool, known: dict[str, Any] | None = None) -> None:
        self.delta = delta
        self.session = ProxySession(
            "proxy/p", Principal("proxy", "p"), PROFILE, "cp-1", 0.0, 5.0, delta=delta
        )
        self.now_s = 0.0
        self.held: dict[str, dict[str, bytes]] = {url: {} for url in TYPES}
        self.names: dict[str, list[str]] = {}
        self.log: list[str] = []  # types in the order of their responses
        self._known = known or {}

    def ask(self, url: str, *names: str) -> None:
        """Subscribe to these names, and no others, of a type; none: to everything."""
        before = self.names.get(url, [])
        self.names[url] = list(names)
        if self.delta:
            request = discovery.DeltaDiscoveryRequest(
                type_url=url,
                resource_names_subscribe=[n for n in names if n not in before],
                resource_names_unsubscribe=[n for n in before if n not in names],
                initial_resource_versions=self._known.pop(url, {}),
            )
        else:
            request = discovery.DiscoveryRequest(
                type_url=url, resource_names=names, version_info=self._known.pop(url, "")
            )
        self.session.receive(request, 6.0)

    def next(self, there: Bundle) -> Any:
        data = self.session.next_response(there, self.now_s)
        if data is None:
            return None
        cls = discovery.DeltaDiscoveryResponse if self.delta else discovery.DiscoveryResponse
        response = cls.FromString(data)
        self.log.append(response.type_url)
        return response

    def accept(self, response: Any) -> None:
        url = response.type_url
        if self.delta:
            for entry in response.resources:
                self.held[url][entry.name] = entry.resource.value
            for name in response.removed_resources:
                self.held[url].pop(name, None)
        else:
            self.held[url] = {str(i): a.value for i, a in enumerate(response.resources)}
        self.answer(response)

    def waiting(self) -> bool:
        return self.session.waits

    def refuse(self, response: Any, reason: str = "no such thing") -> None:
        self.answer(response, reason)

    def answer(self, response: Any, reason: str = "") -> None:
        names = self.names.get(response.type_url, [])
        if self.delta:
            request: Any = discovery.DeltaDiscoveryRequest()
        else:
            request = discovery.DiscoveryRequest(
                resource_names=names, version_info="" if reason else response.version_info
            )
        request.type_url = response.type_url
        request.response_nonce = response.nonce
        if reason:
            request.error_detail.message = reason
        self.session.receive(request, 7.0)

    def settle(self, there: Bundle) -> list[str]:
        """Accept all that comes, subscribing to the endpoints of clusters as Envoy does; what
        came, by type."""
        before = len(self.log)
        while (response := self.next(there)) is not None:
            self.accept(response)
            if response.type_url == CLUSTER:
                clusters = sorted(there.clusters | self._clusters(response))
                if clusters != self.names.get(ENDPOINTS):
                    self.ask(ENDPOINTS, *clusters)
        return self.log[before:]

    def _clusters(self, response: Any) -> set[str]:
        entries = [e.resource.value if self.delta else e.value for e in response.resources]
        from_wire = [_cluster_name(value) for value in entries]
        if self.delta:
            return set(self.held[CLUSTER])
        return set(from_wire)


def _cluster_name(value: bytes) -> str:
    name: str = cluster_pb2.Cluster.FromString(value).name
    return name


def names_of(peer: Peer, response: Any) -> set[str]:
    """Of the clusters, or of those whose endpoints, a response brings."""
    if peer.delta:
        return {entry.name for entry in response.resources}
    if response.type_url == CLUSTER:
        return {cluster_pb2.Cluster.FromString(a.value).name for a in response.resources}
    parse = endpoint_pb2.ClusterLoadAssignment.FromString
    return {parse(a.value).cluster_name for a in response.resources}

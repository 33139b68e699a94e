"""A world, translated for proxies of one profile. Pure.

Clusters, listener and routes change with the configuration alone; endpoints also with what the
director decides, each second perhaps. Versions are digests of content: replicas agree on them,
and what did not change is not sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from control_plane.discovery.proxies.classes import Kind, kinds
from control_plane.discovery.proxies.clusters import cluster_for, endpoints_for
from control_plane.discovery.proxies.listeners import listener_for
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.routes import routes_for
from control_plane.discovery.proxies.spread import World
from topology.demand import DemandClass

_PREFIX = "type.googleapis.com/"
CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = _PREFIX + "envoy.config.route.v3.RouteConfiguration"

# The order in which a proxy must hear of a change to make before it breaks.
TYPES = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)


class Packed(Struct, frozen=True):
    """A resource, serialised: the value of an Any of its type."""

    name: str
    version: str
    value: bytes


class Bundle:
    """All resources for one profile at one moment. Build with `translate`."""

    def __init__(
        self, world: World, profile: Profile, earlier: Bundle | None, *, staged: bool
    ) -> None:
        self.profile = profile
        self.staged = staged  # of before the rollout that is under way
        self.revision = world.snapshot.revision
        self._world = world
        self._asked: dict[tuple[str, str], Packed] = {}
        if earlier is not None and earlier._world.snapshot is world.snapshot:
            self._kinds: dict[str, Kind] = earlier._kinds
            lasting: dict[str, Mapping[str, Packed]] = {
                url: earlier.resources[url] for url in (CLUSTER, LISTENER, ROUTES)
            }
        else:
            tenants = [profile.tenant] if profile.tenant else sorted(world.snapshot.tenants)
            self._kinds = kinds(world.snapshot, tenants)
            lasting = _lasting(world, profile, self._kinds)
        endpoints = {
            name: _pack(name, endpoints_for(world, profile, DemandClass.parse(name)))
            for name in lasting[CLUSTER]
        }
        self.resources: dict[str, Mapping[str, Packed]] = {**lasting, ENDPOINTS: endpoints}

    @property
    def clusters(self) -> frozenset[str]:
        """The clusters that its routes name."""
        return frozenset(self.resources[CLUSTER])

    def outlived(self, url: str, name: str) -> Packed:
        """A cluster, or its endpoints, that only earlier routes name: by how things stand now."""
        found = self._asked.get((url, name))
        if found is None:
            demand = DemandClass.parse(name)
            message = (
                cluster_for(self.profile, demand)
                if url == CLUSTER
                else endpoints_for(self._world, self.profile, demand)
            )
            found = self._asked[url, name] = _pack(name, message)
        return found


def translate(
    world: World, profile: Profile, earlier: Bundle | None = None, *, staged: bool = False
) -> Bundle:
    """`earlier`: of the same profile; what it shares with this one is taken over."""
    return Bundle(world, profile, earlier, staged=staged)


def _lasting(
    world: World, profile: Profile, tenants: dict[str, Kind]
) -> dict[str, Mapping[str, Packed]]:
    policy = world.snapshot.policy
    distinct = {id(kind): kind for kind in tenants.values()}.values()
    demands = sorted({demand for kind in distinct for demand in kind.classes})
    listener = listener_for(profile, policy)
    routes = routes_for(profile, tenants, policy)
    return {
        CLUSTER: {str(d): _pack(str(d), cluster_for(profile, d)) for d in demands},
        LISTENER: {listener.name: _pack(listener.name, listener)},
        ROUTES: {routes.name: _pack(routes.name, routes)},
    }


def _pack(name: str, message: Any) -> Packed:
    value: bytes = message.SerializeToString(deterministic=True)
    return Packed(name, hashlib.blake2b(value, digest_size=8).hexdigest(), value)

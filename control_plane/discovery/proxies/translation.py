"""A world, translated for proxies. Pure.

Clusters, listener and routes change with the configuration alone; endpoints also with what the
director decides, each second perhaps. Versions are digests of content: replicas agree on them,
and what did not change is not sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from control_plane.discovery.proxies.classes import Kind, kinds
from control_plane.discovery.proxies.clusters import cluster_for, endpoints_for
from control_plane.discovery.proxies.listeners import listener_for
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.routes import routes_for
from control_plane.discovery.proxies.spread import World, placed
from topology.demand import DemandClass

_PREFIX = "type.googleapis.com/"
CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = _PREFIX + "envoy.config.route.v3.RouteConfiguration"

# The order in which a proxy must hear of a change to make before it breaks.
TYPES = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)


HELD_MAX = 4_096  # what a translator keeps for the next proxy, of each sort

T = TypeVar("T")


class Packed(Struct, frozen=True):
    """A resource, serialised: the value of an Any of its type."""

    name: str
    version: str
    value: bytes


class Bundle:
    """All resources for one profile in one world. Ask a `Translator` for it."""

    def __init__(self, translator: Translator, profile: Profile) -> None:
        self.revision = translator.world.snapshot.revision
        self.staged = translator.staged  # of before the rollout that is under way
        self._translator = translator
        self._profile = profile
        clusters = translator.clusters(profile)
        self.resources: dict[str, Mapping[str, Packed]] = {
            CLUSTER: clusters,
            ENDPOINTS: {name: translator.endpoints(profile, name) for name in clusters},
            LISTENER: translator.listeners(profile),
            ROUTES: translator.routes(profile),
        }
        self.clusters = frozenset(clusters)  # that its routes name

    def revision_of(self, url: str) -> int:
        """Which revision to name if a proxy refuses this: that of before the rollout under way
        where this is as it was, so that no change is taken back for what it did not do."""
        before = self._translator.before
        if before is None:
            return self.revision
        mine, theirs = self.resources[url], before.bundle_for(self._profile).resources[url]
        same = mine.keys() == theirs.keys() and all(
            theirs[name].version == packed.version for name, packed in mine.items()
        )
        return min(self._translator.base_revision, self.revision) if same else self.revision

    def outlived(self, url: str, name: str) -> Packed:
        """A cluster, or its endpoints, that only earlier routes name: by how things stand now."""
        if url == CLUSTER:
            return self._translator.cluster(self._profile, name)
        return self._translator.endpoints(self._profile, name)


class Translator:
    """Translates one world. Proxies share whatever does not depend on what they differ in; what
    was made for the same configuration before is taken over from `earlier`."""

    def __init__(
        self,
        world: World,
        earlier: Translator | None = None,
        *,
        staged: bool = False,
        before: Translator | None = None,
        base_revision: int = 0,
    ) -> None:
        """`before`: of what proxies beyond the stage of a rollout are served; the rollout's
        change was planned against `base_revision`. `staged`: this is such a one itself."""
        self.before = before
        self.base_revision = base_revision
        # Of what the director decided, quotas are for edges, and are the bulk of it.
        state = msgspec.structs.replace(world.state, quotas={}, numbers={})
        self.world = msgspec.structs.replace(world, state=state)
        self.staged = staged
        same = earlier is not None and earlier.world.snapshot is world.snapshot
        self._lasting: dict[object, Any] = earlier._lasting if earlier and same else {}
        self._passing: dict[object, Any] = {}

    def bundle_for(self, profile: Profile) -> Bundle:
        return self._once(self._passing, profile, lambda: Bundle(self, profile))

    def clusters(self, profile: Profile) -> Mapping[str, Packed]:
        """Those that the routes for this profile name."""
        distinct = {id(kind): kind for kind in self._kinds(profile).values()}.values()
        demands = sorted({demand for kind in distinct for demand in kind.classes})
        return {str(d): self.cluster(profile, str(d)) for d in demands}

    def cluster(self, profile: Profile, name: str) -> Packed:
        key = (CLUSTER, profile.flavour, profile.upstream, name)
        demand = DemandClass.parse(name)
        return self._once(self._lasting, key, lambda: _pack(name, cluster_for(profile, demand)))

    def endpoints(self, profile: Profile, name: str) -> Packed:
        here = profile.place if placed(self.world.snapshot, profile.place) else ""
        demand = DemandClass.parse(name)
        return self._once(
            self._passing,
            (here, name),
            lambda: _pack(name, endpoints_for(self.world, profile, demand)),
        )

    def listeners(self, profile: Profile) -> Mapping[str, Packed]:
        def make() -> Mapping[str, Packed]:
            listener = listener_for(profile)
            return {listener.name: _pack(listener.name, listener)}

        return self._once(self._lasting, (LISTENER, profile.flavour, profile.listen), make)

    def routes(self, profile: Profile) -> Mapping[str, Packed]:
        def make() -> Mapping[str, Packed]:
            policy = self.world.snapshot.policy
            routes = routes_for(profile, self._kinds(profile), policy)
            return {routes.name: _pack(routes.name, routes)}

        return self._once(self._lasting, (ROUTES, profile.flavour, profile.tenant), make)

    def _kinds(self, profile: Profile) -> dict[str, Kind]:
        def make() -> dict[str, Kind]:
            snapshot = self.world.snapshot
            return kinds(snapshot, [profile.tenant] if profile.tenant else sorted(snapshot.tenants))

        return self._once(self._lasting, ("kinds", profile.tenant), make)

    def _once(self, held: dict[object, Any], key: object, make: Callable[[], T]) -> T:
        found: T | None = held.get(key)
        if found is None:
            if len(held) >= HELD_MAX:
                held.clear()
            found = held[key] = make()
        return found


def _pack(name: str, message: Any) -> Packed:
    value: bytes = message.SerializeToString(deterministic=True)
    return Packed(name, hashlib.blake2b(value, digest_size=8).hexdigest(), value)

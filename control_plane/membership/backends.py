"""The registry that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from control_plane.membership.base import Registry
from control_plane.membership.errors import CannotOpenRegistry
from control_plane.membership.leases import LeaseRegistry
from control_plane.membership.settings import MembershipSettings
from control_plane.store.base import Store
from runtime.clock import Clock


def open_registry(
    settings: MembershipSettings,
    store: Store,
    clock: Clock,
    rng: Random,
    *,
    replica: str = "",
    listen: str = "",
    ready: Callable[[], bool] = lambda: True,
) -> Registry:
    """Build it in a running event loop. Raises `CannotOpenRegistry`.

    `replica` and `listen` (host:port) are how this replica registers itself in Consul, and `ready`
    what its health check there is told.
    """
    if settings.backend == "leases":
        return LeaseRegistry(store, clock, rng, settings.ttl_s)
    try:
        from control_plane.membership.consul import ConsulRegistry, Replica
    except ImportError as error:
        raise CannotOpenRegistry(
            f"membership in Consul needs a package that is not installed: {error.name}",
            hint="pip install 'tradewind[consul]'",
        ) from error
    own = Replica(replica, listen) if replica else None
    return ConsulRegistry(settings.consul, clock, rng, settings.ttl_s, own, ready)

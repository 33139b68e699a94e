"""Membership in Consul: nodes and replicas are services with checks, followed by blocking queries.

The replica that a node keeps its stream with registers it with the replica's own agent, as service
`<prefix>-edge` or `<prefix>-core`, id = node id, with a TTL check that its heartbeats keep up:
passing, or warning while it drains, or critical when it says that it is not well. So nodes need no
agent, and only the control plane needs Consul's token. The replica itself is `<prefix>-control`,
with a gRPC health check where it serves one, else a TTL check.

A node that moves to another replica is known to both agents until the older check lapses; the one
where it is alive counts. Consul knows no leases: `lease` is always 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from control_plane.directives.observed import Member
from control_plane.membership import consul_catalog as catalog
from control_plane.membership.base import Listener
from control_plane.membership.consul_client import ConsulClient
from control_plane.membership.errors import CannotOpenRegistry, MemberLost, RegistryUnavailable
from control_plane.membership.health import HealthEndpoint
from control_plane.membership.settings import ConsulSettings
from control_plane.store.base import StoreStatus
from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock

log = logs.get("consul")

T = TypeVar("T")

_RETRY_MIN_S, _RETRY_MAX_S = 0.2, 5.0
_CALLS = "calls"  # what is in trouble, beside the services that are followed
_LEAVE_S = 1.0


class Replica(msgspec.Struct, frozen=True):
    """The control-plane replica, as it registers itself."""

    name: str
    listen: str  # host:port of discovery and the admin API


class ConsulRegistry:
    """See `control_plane.membership.base.Registry`. Build it in a running event loop."""

    backend = "consul"

    def __init__(
        self,
        settings: ConsulSettings,
        clock: Clock,
        rng: Random,
        ttl_s: float = 15.0,
        replica: Replica | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`ready`: what the gRPC health check of `replica` is told. Raises `CannotOpenRegistry`."""
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._ttl_s = ttl_s
        self._replica = replica
        self._client = ConsulClient(settings)
        health = settings.health if replica is not None else None
        self._health = HealthEndpoint(health, ready) if health is not None else None
        self._of_service: dict[str, dict[str, Member]] = {}
        self._members: Mapping[str, Member] = MappingProxyType({})
        services = [self._service(role) for role in ("edge", "core")]
        self._troubles = dict.fromkeys(services, "the members have not been read yet")
        self._status = StoreStatus(False, clock.wall(), "not contacted yet")
        self._listeners: list[Listener] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ttl_s(self) -> float:
        return self._ttl_s

    @property
    def members(self) -> Mapping[str, Member]:
        return self._members

    @property
    def status(self) -> StoreStatus:
        return self._status

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        works = [(s, self._follow_forever(s)) for s in list(self._troubles)]
        if self._replica is not None:
            works.append(("replica", self._present_forever(self._replica)))
        self._tasks = [asyncio.create_task(work, name=f"consul-{what}") for what, work in works]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._replica is not None and self._status.available:
            await self._withdraw(self._replica)
        if self._health is not None:
            await self._health.close()
        await self._client.close()

    async def register(self, member: Member, lease: int = 0) -> int:
        status, _ = catalog.status_of(member)
        await self._counted(
            self._client.register(
                self._service(member.role),
                member.node,
                self._ttl_check() | {"Status": status},
                member.addresses[0] if member.addresses else "",
                catalog.meta_of(member),
            )
        )
        await self.renew(member, 0)
        return 0

    async def renew(self, member: Member, lease: int) -> None:
        status, note = catalog.status_of(member)
        if not await self._counted(self._client.update(member.node, status, note)):
            raise MemberLost(f"Consul's agent does not know {member.node}")

    async def forget(self, member: Member, lease: int) -> None:
        known = self._members.get(member.node)
        if known is None or known.incarnation == member.incarnation:
            await self._counted(self._client.deregister(member.node))

    # What is in Consul

    async def _follow_forever(self, service: str) -> None:
        """Never ends; members stay as they are while Consul does not answer."""
        backoff = Backoff(_RETRY_MIN_S, _RETRY_MAX_S, self._rng.random)
        index = 0
        while True:
            try:
                told, instances = await self._client.instances(
                    service, index, self._settings.wait_s
                )
                if index == 0 or told != index:
                    self._take(service, instances)
                self._works(service)
                index = catalog.next_index(index, told)
                backoff.reset()
                pause_s = self._settings.pause_s * (0.75 + 0.5 * self._rng.random())
            except RegistryUnavailable as error:
                self._fails(service, str(error))
                index, pause_s = 0, backoff.next_s()
            except Exception as error:  # the task's outermost edge: members stay as they are
                log.exception("following a service failed", service=service)
                self._fails(service, repr(error))
                index, pause_s = 0, backoff.next_s()
            await asyncio.sleep(pause_s)

    def _take(self, service: str, instances: list[Any]) -> None:
        found = catalog.members_of(instances)
        if self._of_service.get(service) == found:
            return
        self._of_service[service] = found
        merged = {n: m for of in self._of_service.values() for n, m in of.items()}
        self._members = MappingProxyType(merged)
        for listener in self._listeners:
            listener()

    # This replica's own entry

    async def _present_forever(self, replica: Replica) -> None:
        """Keep this replica's entry there, also through restarts of the agent."""
        while True:
            pause_s = self._ttl_s / 3 * (0.75 + 0.25 * self._rng.random())
            try:
                await self._counted(self._present(replica))
            except RegistryUnavailable:
                pause_s = min(pause_s, _RETRY_MAX_S)
            except CannotOpenRegistry as error:  # the health service's address: it may get free
                log.error("this replica cannot be checked", reason=str(error))
            except Exception:  # the task's outermost edge
                log.exception("registering this replica failed")
            await asyncio.sleep(pause_s)

    async def _withdraw(self, replica: Replica) -> None:
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._client.deregister(_id_of(replica))
        except (RegistryUnavailable, TimeoutError) as error:
            log.info("the replica's entry stays until it lapses", reason=str(error))

    async def _present(self, replica: Replica) -> None:
        node, health = _id_of(replica), self._settings.health
        if self._health is not None and not self._health.serving:
            await self._health.start()
        if health is None:
            if await self._client.update(node, catalog.PASSING, "the replica runs"):
                return
        elif await self._client.knows(node):
            return
        check = self._ttl_check() if health is None else self._grpc_check(health)
        await self._client.register(self._service("control"), node, check, replica.listen)
        log.info("this replica is registered", node=node, check=health or "ttl")
        if health is None:
            await self._client.update(node, catalog.PASSING, "the replica runs")

    def _ttl_check(self) -> dict[str, Any]:
        return {
            "TTL": _duration(self._ttl_s),
            "DeregisterCriticalServiceAfter": _duration(self._settings.remove_after_s),
        }

    def _grpc_check(self, health: str) -> dict[str, Any]:
        return {
            "GRPC": health,
            "GRPCUseTLS": False,
            "Interval": _duration(self._settings.check_every_s),
            "Timeout": _duration(self._settings.check_every_s),
            "DeregisterCriticalServiceAfter": _duration(self._settings.remove_after_s),
        }

    def _service(self, role: str) -> str:
        return f"{self._settings.prefix}-{role}"

    # Whether Consul answers

    async def _counted(self, call: Awaitable[T]) -> T:
        try:
            answer = await call
        except RegistryUnavailable as error:
            self._fails(_CALLS, str(error))
            raise
        self._works(_CALLS)
        return answer

    def _works(self, source: str) -> None:
        self._troubles.pop(source, None)
        if not self._troubles:
            self._set(True, f"Consul at {self._settings.address}")

    def _fails(self, source: str, detail: str) -> None:
        self._troubles[source] = detail
        self._set(False, detail)

    def _set(self, available: bool, detail: str) -> None:
        before = self._status
        since_s = before.since_s if before.available == available else self._clock.wall()
        self._status = StoreStatus(available, since_s, detail)
        if available != before.available:
            write = log.info if available else log.warning
            write("Consul answers" if available else "Consul does not answer", detail=detail)


def _id_of(replica: Replica) -> str:
    return f"control/{replica.name}"


def _duration(seconds: float) -> str:
    """As Go reads it."""
    return f"{round(seconds * 1000)}ms"

"""A real etcd dies under a replica and its nodes: nobody vanishes, and newcomers come in after."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from random import Random

from control_plane.membership.settings import MembershipSettings
from control_plane.store.etcd import EtcdSettings, EtcdStore
from lab.etcd_cluster import EtcdCluster
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, until
from tests.membership.replicas import Replica, core_report, node, replica
from tests.store.worlds import free_ports

SETTINGS = MembershipSettings(ttl_s=6.0, interval_s=0.3)
NODES = ("core/dubai", "core/singapore", "core/frankfurt.1", "core/frankfurt.2")


class Watcher:
    """Notes every member that ever went missing."""

    def __init__(self, here: Replica) -> None:
        self._members = here.registry.members
        self.missed: set[str] = set()
        here.registry.on_change(self._look)

    def _look(self) -> None:
        self.missed |= {n for n in NODES if n not in self._members}


def store_on(cluster: EtcdCluster) -> EtcdStore:
    settings = EtcdSettings(tuple(cluster.endpoints), call_timeout_ms=2_000)
    return EtcdStore(settings, SystemClock(), Random(1))


async def test_etcds_leader_and_then_all_of_it(mesh: Mesh, tmp_path: Path) -> None:
    cluster = EtcdCluster(tmp_path / "etcd", ports=free_ports(3), durable=False)
    await cluster.start()
    store = store_on(cluster)
    try:
        async with replica(mesh, store, SETTINGS) as here, contextlib.AsyncExitStack() as stack:
            endpoints = [here.endpoint]
            clients = [
                await stack.enter_async_context(node(mesh, name, endpoints, core_report))
                for name in NODES
            ]
            await until(lambda: all(c.status.registered for c in clients), 20)
            await until(lambda: len(here.registry.members) == len(NODES))
            watcher = Watcher(here)

            cluster.kill(await cluster.leader())
            newcomer = node(mesh, "edge/tokyo", endpoints, core_report)
            edge = await stack.enter_async_context(newcomer)
            await until(lambda: edge.status.registered, 20)

            for index in range(3):
                cluster.kill(index)
            await until(lambda: not here.registry.status.available, 20)
            await asyncio.sleep(SETTINGS.ttl_s)  # longer than any lease
            assert all(c.status.connected for c in clients)
            assert set(here.registry.members) == {*NODES, "edge/tokyo"}
            assert len(here.service.cores()) == len(NODES)
            await cluster.start()
            await until(lambda: here.registry.status.available, 20)
            await until(lambda: all(c.status.registered for c in clients), 20)
            await asyncio.sleep(SETTINGS.ttl_s / 2)
            assert not watcher.missed
    finally:
        await store.close()
        await cluster.stop(grace_s=0)

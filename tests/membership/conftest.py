"""A mesh, a real etcd and a real Consul agent for the suite."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from lab.etcd_cluster import EtcdCluster
from runtime import logs
from tests.control_plane.mesh import Mesh
from tests.membership import worlds
from tests.membership.worlds import World
from tests.store.worlds import free_ports


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(autouse=True, scope="session")
def quiet_logs() -> Iterator[None]:
    logs.configure("test", "info", io.StringIO())
    yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdCluster]:
    cluster = EtcdCluster(
        tmp_path_factory.mktemp("etcd"),
        ports=free_ports(1),
        durable=False,
        extra_arguments=["--experimental-watch-progress-notify-interval=100ms"],
    )
    await cluster.start()
    yield cluster
    await cluster.stop(grace_s=0)


@pytest.fixture(params=["memory", "etcd"])
async def world(request: pytest.FixtureRequest, etcd: EtcdCluster) -> AsyncIterator[World]:
    match request.param:
        case "memory":
            async with worlds.memory_world() as memory:
                yield memory
        case "etcd":
            async with worlds.lease_world_on(etcd.endpoints[0]) as real:
                yield real

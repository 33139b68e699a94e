"""A mesh, a real etcd and a real Consul agent for the suite."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lab.etcd_cluster import EtcdCluster
from runtime import logs
from tests.consul_agent import ConsulAgent, NoConsul, find_consul
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


@pytest.fixture(scope="session")
def consul_binary() -> Path:
    try:
        return find_consul()
    except NoConsul as reason:
        pytest.skip(f"NO CONSUL IS TESTED: {reason}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def consul(
    consul_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ConsulAgent]:
    agent = ConsulAgent(consul_binary, tmp_path_factory.mktemp("consul"))
    await agent.start()
    yield agent
    agent.kill()


@pytest.fixture
async def memory_world() -> AsyncIterator[World]:
    async with worlds.memory_world() as world:
        yield world


@pytest.fixture
async def etcd_world(etcd: EtcdCluster) -> AsyncIterator[World]:
    async with worlds.lease_world_on(etcd.endpoints[0]) as world:
        yield world


@pytest.fixture
async def consul_world(consul: ConsulAgent) -> AsyncIterator[World]:
    async with worlds.consul_world_on(consul) as world:
        yield world


@pytest.fixture(params=["memory", "etcd", "consul"])
def world(request: pytest.FixtureRequest) -> World:
    """One of them: only what a test asks for is started."""
    found: World = request.getfixturevalue(f"{request.param}_world")
    return found

"""A real etcd for the suite, and each test's own corner of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from lab.etcd_cluster import EtcdCluster
from tests.store.worlds import World, etcd_world, free_ports, memory_world


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdCluster]:
    """One member, started once."""
    cluster = EtcdCluster(
        tmp_path_factory.mktemp("etcd"),
        ports=free_ports(1),
        durable=False,
        # So that notices of progress come between the events of every test.
        extra_arguments=["--experimental-watch-progress-notify-interval=100ms"],
    )
    await cluster.start()
    yield cluster
    await cluster.stop(grace_s=0)


@pytest.fixture(params=["memory", "etcd"])
async def world(request: pytest.FixtureRequest, etcd: EtcdCluster) -> AsyncIterator[World]:
    if request.param == "memory":
        async with memory_world() as memory:
            yield memory
    else:
        async with etcd_world(etcd.endpoints[0]) as real:
            yield real

"""Membership in Consul, with a real agent: what it shows, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from control_plane.membership.consul import ConsulRegistry, Replica
from control_plane.membership.errors import CannotOpenRegistry, RegistryUnavailable
from control_plane.membership.health import HealthEndpoint
from control_plane.membership.settings import ConsulSettings, MembershipSettings
from runtime.clock import SystemClock
from tests.consul_agent import ConsulAgent
from tests.control_plane.mesh import Mesh, until
from tests.membership.replicas import Replica as Serving
from tests.membership.replicas import core_report, node
from tests.membership.worlds import core, deregister_all
from tests.store.worlds import free_ports

SETTINGS = MembershipSettings(ttl_s=2.0, interval_s=0.2)


def registry(
    address: str,
    replica: Replica | None = None,
    ready: Callable[[], bool] = lambda: True,
    **more: Any,
) -> ConsulRegistry:
    asked = {"wait_s": 5.0, "pause_s": 0.02, "call_timeout_s": 1.0} | more
    settings = ConsulSettings(address=address, **asked)
    return ConsulRegistry(settings, SystemClock(), Random(1), SETTINGS.ttl_s, replica, ready)


@contextlib.asynccontextmanager
async def following(made: ConsulRegistry) -> AsyncIterator[ConsulRegistry]:
    made.start()
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def own_agent(consul_binary: Path, tmp_path: Path) -> AsyncIterator[ConsulAgent]:
    """One that may be killed."""
    agent = ConsulAgent(consul_binary, tmp_path / "agent")
    await agent.start()
    yield agent
    agent.kill()


async def check_of(agent: ConsulAgent, service: str, service_id: str) -> dict[str, Any]:
    headers = {"X-Consul-Token": agent.token}
    async with httpx.AsyncClient(base_url=f"http://{agent.address}", headers=headers) as http:
        for instance in (await http.get(f"/v1/health/service/{service}")).json():
            if instance["Service"]["ID"] == service_id:
                (check,) = (c for c in instance["Checks"] if c["ServiceID"])
                return {"service": instance["Service"], **check}
    return {"Status": "absent"}


async def until_check(agent: ConsulAgent, service: str, service_id: str, status: str) -> None:
    async with asyncio.timeout(10):
        while (await check_of(agent, service, service_id))["Status"] != status:
            await asyncio.sleep(0.05)


async def test_heartbeats_pass_warn_and_fail_the_check(mesh: Mesh, consul: ConsulAgent) -> None:
    await deregister_all(consul)
    serving = Serving(mesh, registry(consul.address), SETTINGS)
    await serving.start()
    state = {"healthy": True, "draining": False}
    try:
        reports = node(mesh, "core/dubai", [serving.endpoint], lambda: core_report(**state))
        async with reports as client:
            await until(lambda: client.status.registered)
            await until_check(consul, "tradewind-core", "core/dubai", "passing")
            check = await check_of(consul, "tradewind-core", "core/dubai")
            assert check["Type"] == "ttl" and check["service"]["Meta"]["role"] == "core"
            state["draining"] = True
            await until_check(consul, "tradewind-core", "core/dubai", "warning")
            await until(lambda: serving.registry.members["core/dubai"].draining)
            state.update(healthy=False, draining=False)
            await until_check(consul, "tradewind-core", "core/dubai", "critical")
            await until(lambda: not serving.registry.members["core/dubai"].healthy)
            state["healthy"] = True
            await until_check(consul, "tradewind-core", "core/dubai", "passing")
            await asyncio.sleep(SETTINGS.ttl_s + 0.5)  # and heartbeats keep it so
            assert (await check_of(consul, "tradewind-core", "core/dubai"))["Status"] == "passing"
        await until_check(consul, "tradewind-core", "core/dubai", "absent")
    finally:
        await serving.close()


async def test_an_agent_that_restarts_is_told_everything_again(
    mesh: Mesh, own_agent: ConsulAgent
) -> None:
    serving = Serving(mesh, registry(own_agent.address, Replica("cp-1", "127.0.0.1:7400")))
    await serving.start()
    try:
        async with node(mesh, "core/dubai", [serving.endpoint], core_report) as client:
            await until(lambda: client.status.registered)
            await until_check(own_agent, "tradewind-control", "control/cp-1", "passing")
            await until(lambda: "core/dubai" in serving.registry.members)
            own_agent.kill()
            await until(lambda: not serving.registry.status.available)
            await until(lambda: not client.status.registered)
            assert client.status.connected  # heartbeats are taken all the same
            assert "core/dubai" in serving.registry.members  # the last seen stay
            await own_agent.start()
            await until(lambda: serving.registry.status.available, 15)
            await until_check(own_agent, "tradewind-core", "core/dubai", "passing")
            await until_check(own_agent, "tradewind-control", "control/cp-1", "passing")
            await until(lambda: client.status.registered)
            await until(lambda: "core/dubai" in serving.registry.members)
    finally:
        await serving.close()


async def test_an_agent_that_freezes_is_away_and_then_back(own_agent: ConsulAgent) -> None:
    replica = Replica("cp-1", "127.0.0.1:7400")
    async with following(registry(own_agent.address, replica)) as here:
        await until(lambda: here.status.available)
        own_agent.signal(signal.SIGSTOP)
        await until(lambda: not here.status.available, 10)
        assert "in time" in here.status.detail
        own_agent.signal(signal.SIGCONT)
        await until(lambda: here.status.available, 15)


async def test_a_replica_is_checked_over_grpc(consul: ConsulAgent) -> None:
    await deregister_all(consul)
    ready = [True]
    replica, health = Replica("cp-7", "127.0.0.1:7407"), f"127.0.0.1:{free_ports(1)[0].client}"
    more = {"health": health, "check_every_s": 1.0}
    made = registry(consul.address, replica, ready=lambda: bool(ready), **more)
    async with following(made):
        await until_check(consul, "tradewind-control", "control/cp-7", "passing")
        check = await check_of(consul, "tradewind-control", "control/cp-7")
        assert check["Type"] == "grpc" and check["service"]["Port"] == 7407
        ready.clear()
        await until_check(consul, "tradewind-control", "control/cp-7", "critical")
    await until_check(consul, "tradewind-control", "control/cp-7", "absent")


async def test_the_health_service_tells_nothing_else() -> None:
    endpoint = HealthEndpoint("127.0.0.1:0", lambda: True)
    await endpoint.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{endpoint.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest
            assert (await stub.Check(request())).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="no such service"):
                await stub.Check(request(service="etcd"))
            taken = HealthEndpoint(f"127.0.0.1:{endpoint.port}", lambda: True)
            with pytest.raises(CannotOpenRegistry, match="health"):
                await taken.start()
    finally:
        await endpoint.close()


async def test_a_node_that_moves_to_the_replica_of_another_agent(
    mesh: Mesh, own_agent: ConsulAgent, consul_binary: Path, tmp_path: Path
) -> None:
    """Two machines, each with a replica and an agent; the first dies whole."""
    second_agent = ConsulAgent(
        consul_binary, tmp_path / "second", {"node_name": "second"}, join=own_agent
    )
    await second_agent.start()
    stays = Serving(mesh, registry(own_agent.address), SETTINGS)
    dies = Serving(mesh, registry(second_agent.address), SETTINGS)
    await stays.start()
    await dies.start()
    try:
        async with node(mesh, "core/dubai", [stays.endpoint, dies.endpoint], core_report) as client:
            await until(lambda: client.status.registered)
            assert client.status.endpoint == dies.endpoint  # by the seed of `node`
            for here in (dies, stays):
                await until(lambda here=here: "core/dubai" in here.registry.members, 10)  # type: ignore[misc]
            before = stays.registry.members["core/dubai"]
            await dies.kill()
            second_agent.kill()
            await until(lambda: client.status.endpoint == stays.endpoint, 10)
            await until(lambda: client.status.registered, 10)
            loop = asyncio.get_running_loop()
            end_s = loop.time() + SETTINGS.ttl_s + 1.0
            while loop.time() < end_s:  # through the end of the older check
                assert stays.registry.members["core/dubai"] == before
                await asyncio.sleep(0.05)
        await until(lambda: "core/dubai" not in stays.registry.members, 5)
    finally:
        await dies.close()
        await stays.close()
        second_agent.kill()


async def test_a_token_is_needed_read_and_read_again(consul_binary: Path, tmp_path: Path) -> None:
    master = "6f9b2a10-5f0e-4a7c-9f5d-2f0d5a4c1e77"
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": master}}
    agent = ConsulAgent(consul_binary, tmp_path / "agent", {"acl": acl})
    await agent.start()
    token = tmp_path / "token"
    token.write_text("00000000-0000-0000-0000-00000000dead\n")
    try:
        async with following(registry(agent.address, token_file=token)) as here:
            with pytest.raises(RegistryUnavailable, match="refuses"):
                await here.register(core())
            token.write_text(master + "\n")
            await here.register(core())
            await until(lambda: "core/singapore" in here.members, 10)
            await until(lambda: here.status.available, 10)
    finally:
        agent.kill()


async def test_the_settings_win_over_the_environment(
    consul: ConsulAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deregister_all(consul)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "192.0.2.1:1")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "not-ours")
    async with following(registry(consul.address)) as here:
        await here.register(core())
        await until(lambda: "core/singapore" in here.members)


async def test_what_others_register_under_our_names_is_ignored(consul: ConsulAgent) -> None:
    await deregister_all(consul)
    async with httpx.AsyncClient(base_url=f"http://{consul.address}") as http:
        for meta in ({}, {"node": "core/other", "role": "core", "name": "x", "incarnation": "y"}):
            body = {"Name": "tradewind-core", "ID": "core/strange", "Meta": meta}
            check = {"TTL": "60s", "Status": "passing"}
            await http.put("/v1/agent/service/register", json=body | {"Check": check})
            async with following(registry(consul.address)) as here:
                await until(lambda: here.status.available)
                assert not here.members


@pytest.mark.parametrize(
    "body",
    [
        b"<html>not Consul</html>",
        b"[1, 2",
        b"7",
        b'{"a": 1}',
        b"null",
        b'[null, 3, {"Service": 4}]',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("index", ["", "X-Consul-Index: soon\r\n", "X-Consul-Index: 5\r\n"])
async def test_something_else_listens_where_consul_should(body: bytes, index: str) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        head = f"HTTP/1.1 200 OK\r\n{index}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with following(registry(address)) as here:
        await until(lambda: len(asked) >= 2)
        await asyncio.sleep(0.05)
        assert not here.members
    server.close()


async def test_mistakes_in_the_settings_are_said(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("two words")
    with pytest.raises(CannotOpenRegistry, match="one word"):
        registry("127.0.0.1:1", token_file=tmp_path / "token")
    with pytest.raises(CannotOpenRegistry, match="no port"):
        registry("127.0.0.1:99999")
    with pytest.raises(CannotOpenRegistry, match="token_file"):
        registry("127.0.0.1:1", token_file=Path("/nowhere/token"))
    with pytest.raises(CannotOpenRegistry, match=r"nowhere/ca\.pem"):
        registry("127.0.0.1:1", scheme="https", ca=Path("/nowhere/ca.pem"))

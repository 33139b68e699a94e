"""Reaching etcd: settings that are wrong, TLS, users, and things that are not etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import pytest
from etcd3 import etcdrpc

from control_plane.store.base import Guard, Put
from control_plane.store.errors import StoreRefused, StoreUnavailable
from control_plane.store.etcd import EtcdSettings, EtcdStore
from lab.etcd_cluster import EtcdCluster, EtcdTls
from runtime.clock import SystemClock
from runtime.validation import InvalidDocument
from tests.store.certificates import Ca
from tests.store.proxy import Proxy
from tests.store.worlds import free_ports, take


@asynccontextmanager
async def opened(*endpoints: str, **settings: Any) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(EtcdSettings(endpoints, **settings), SystemClock(), Random(1))
    yield store
    await store.close()


async def seconds(call: Any) -> tuple[float, BaseException | None]:
    """How long a call took, and how it failed."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    (result,) = await asyncio.gather(call, return_exceptions=True)
    return loop.time() - begun, result if isinstance(result, BaseException) else None


BAD_ENDPOINTS = [
    "",
    "localhost",
    "localhost:",
    ":2379",
    "localhost:0",
    "localhost:65536",
    "localhost:2379/v3",
    "local host:2379",
    "http://",
    "ftp://localhost:2379",
    "https://localhost:2379",  # without `ca`
    "unix:/run/etcd",
    "dns:///localhost:2379",
    "[::1:2379",
    "localhost:२३७९",
    "localhost:2379\n",
    "-x:1",
]


def test_every_bad_endpoint_is_named() -> None:
    with pytest.raises(InvalidDocument) as caught:
        EtcdStore(EtcdSettings(tuple(BAD_ENDPOINTS)), SystemClock(), Random(1))
    paths = [problem.path for problem in caught.value.problems]
    assert paths == [f"endpoints[{i}]" for i in range(len(BAD_ENDPOINTS))]
    with pytest.raises(InvalidDocument, match="at least one"):
        EtcdStore(EtcdSettings(()), SystemClock(), Random(1))


async def test_good_endpoints() -> None:
    async with opened("http://localhost:1/", "127.0.0.1:2", "[::1]:3", "e-t.c_d:4", "localhost:1"):
        pass


def test_bad_files_are_all_named(tmp_path: Path) -> None:
    ca, other = Ca(tmp_path, "ca"), Ca(tmp_path, "other")
    certificate, key = ca.issue("one")
    _, other_key = other.issue("two")
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"\xff\x00garbage")
    missing = tmp_path / "missing"
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"ca": missing, "certificate": garbage, "key": garbage}, ["ca", "certificate", "key"]),
        ({"ca": garbage}, ["ca"]),
        ({"ca": ca.file, "certificate": certificate}, ["certificate"]),
        ({"certificate": certificate, "key": key}, ["ca"]),
        ({"ca": ca.file, "certificate": certificate, "key": other_key}, ["key"]),
        ({"user": "root"}, ["user"]),
        ({"user": "root", "password_file": missing}, ["password_file"]),
        ({"user": "root", "password_file": garbage}, ["password_file"]),
    ]
    for settings, paths in cases:
        with pytest.raises(InvalidDocument) as caught:
            EtcdStore(EtcdSettings(("localhost:1",), **settings), SystemClock(), Random(1))
        assert [problem.path for problem in caught.value.problems] == paths


async def test_nobody_there() -> None:
    ports = free_ports(1)[0]
    async with opened(f"127.0.0.1:{ports.client}", f"127.0.0.1:{ports.peer}") as store:
        for call in (store.get("a"), store.list("a"), store.transact([], [Put("a", b"")])):
            took_s, error = await seconds(call)
            assert isinstance(error, StoreUnavailable)
            assert took_s < 0.5
            assert not error.ambiguous
            assert error.retryable
            assert "refused" in str(error)
        assert not store.status.available
    async with opened("no-such-host.invalid:2379", call_timeout_ms=600) as store:
        took_s, error = await seconds(store.get("a"))
        assert isinstance(error, StoreUnavailable)
        assert took_s < 1.5


async def test_what_listens_there_is_not_etcd() -> None:
    """A web server, and something that never says a word."""

    transports = []

    class Mute(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transports.append(transport)

    class Web(Mute):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            transport.close()

    for protocol in (Web, Mute):
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with opened(endpoint, call_timeout_ms=1500, attempt_timeout_ms=300) as store:
            took_s, error = await seconds(store.transact([], [Put("a", b"")]))
            assert isinstance(error, StoreUnavailable)
            assert not error.ambiguous
            assert took_s < 2.0
        server.close()
    for transport in transports:
        transport.abort()


async def test_another_grpc_server_is_not_etcd() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with opened(f"127.0.0.1:{port}") as store:
        took_s, error = await seconds(store.get("a"))
        assert isinstance(error, StoreUnavailable)
        assert took_s < 0.5
    await server.stop(0)


async def test_a_silent_member_delays_nobody_for_long(etcd: EtcdCluster) -> None:
    """It accepts connections and never answers, as after a cut that no one was told of."""
    proxy = Proxy(etcd.endpoints[0])
    await proxy.start()
    proxy.freeze()
    for seed in range(4):  # whatever the order in which members are asked
        settings = EtcdSettings((proxy.address, etcd.endpoints[0]))
        store = EtcdStore(settings, SystemClock(), Random(seed))
        took_s, error = await seconds(store.get("a"))
        assert error is None
        assert took_s < 0.5
        watch = store.watch("quiet/", (await store.list("quiet/")).revision)
        await store.transact([], [Put("quiet/a", b"")])
        took_s, error = await seconds(anext(watch))
        assert error is None
        assert took_s < 1.5
        await store.close()
    await proxy.stop()


async def test_a_member_of_another_cluster_is_not_asked(etcd: EtcdCluster, tmp_path: Path) -> None:
    other = EtcdCluster(tmp_path, ports=free_ports(1), durable=False)
    await other.start()
    proxy = Proxy(etcd.endpoints[0])
    await proxy.start()
    async with opened(proxy.address) as store:
        revision = await store.transact([], [Put("mine", b"")])
        watch = store.watch("mine", revision)
        await take_nothing(watch)
        proxy._target = other.endpoints[0]
        proxy.cut()
        await asyncio.sleep(0.05)  # else the cut happens under the call, which is another story
        with pytest.raises(StoreUnavailable, match="another etcd cluster"):
            await store.transact([Guard("mine", 0)], [Put("mine", b"")])
        await take_nothing(watch)
        assert "another etcd cluster" in store.status.detail
        proxy._target = etcd.endpoints[0]
        proxy.cut()
        last = await store.transact([Guard("mine", revision)], [Put("mine", b"2")])
        assert [change.revision for change in await take(watch, 1)] == [last]  # type: ignore[union-attr]
    async with opened(other.endpoints[0]) as store:
        assert await store.get("mine") is None
    await proxy.stop()
    await other.stop(grace_s=0)


async def take_nothing(watch: Any) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch), 0.2)


async def test_mutual_tls(tmp_path: Path) -> None:
    ca, wrong = Ca(tmp_path, "ca"), Ca(tmp_path, "wrong")
    server_files, client, stranger = ca.issue("server"), ca.issue("client"), wrong.issue("stranger")
    tls = EtcdTls(ca.file, *server_files)
    cluster = EtcdCluster(tmp_path / "etcd", ports=free_ports(1), tls=tls, durable=False)
    await cluster.start()
    endpoint = f"https://{cluster.endpoints[0]}"
    files = dict(zip(("certificate", "key"), client, strict=True))
    async with opened(endpoint, ca=ca.file, **files) as store:
        revision = await store.transact([], [Put("a", b"1")])
        async with aclosing(store.watch("a", revision - 1)) as watch:
            await take(watch, 1)
    refused: list[dict[str, Any]] = [
        {"ca": wrong.file, **files},
        {"ca": ca.file},  # no certificate
        {"ca": ca.file, "certificate": stranger[0], "key": stranger[1]},
    ]
    for settings in refused:
        async with opened(endpoint, **settings) as store:
            took_s, error = await seconds(store.transact([], [Put("a", b"2")]))
            assert isinstance(error, StoreUnavailable), settings
            assert not error.ambiguous
            assert took_s < 6
    async with opened(cluster.endpoints[0], call_timeout_ms=1000) as store:  # plain, to a TLS port
        took_s, error = await seconds(store.get("a"))
        assert isinstance(error, StoreUnavailable)
    # A certificate that is renewed on disk is taken up without a restart.
    live_files = tmp_path / "live.pem", tmp_path / "live.key"
    for live, source in zip(live_files, stranger, strict=True):
        live.write_bytes(source.read_bytes())
    async with opened(endpoint, ca=ca.file, certificate=live_files[0], key=live_files[1]) as store:
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        for live, source in zip(live_files, client, strict=True):
            live.write_bytes(source.read_bytes())
        async with asyncio.timeout(5):
            while (await asyncio.gather(store.get("a"), return_exceptions=True))[0] is None or (
                not store.status.available
            ):
                await asyncio.sleep(0.05)
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == b"1"
    await cluster.stop(grace_s=0)


async def test_users(tmp_path: Path) -> None:
    """etcd's own authentication: a user who may touch /tradewind/ only; tokens that are lost."""
    cluster = EtcdCluster(
        tmp_path / "etcd",
        ports=free_ports(1),
        durable=False,
        extra_arguments=["--bcrypt-cost=4", "--auth-token-ttl=300"],
    )
    await cluster.start()
    await _enable_auth(cluster.endpoints[0])
    password = tmp_path / "password"
    password.write_text("secret\n")
    async with opened(cluster.endpoints[0], user="tw", password_file=password) as store:
        revision = await store.transact([], [Put("/tradewind/a", b"1")])
        watch = store.watch("/tradewind/", revision)
        with pytest.raises(StoreRefused, match="permission denied") as caught:
            await store.transact([], [Put("/other", b"1")])
        assert not caught.value.ambiguous
        assert not caught.value.retryable
        await take_nothing(watch)
        await cluster.restart(0)  # which forgets every token
        again = await store.transact([], [Put("/tradewind/a", b"2")])
        assert [item.revision for item in await take(watch, 1)] == [again]  # type: ignore[union-attr]
        # Leases need no permission of their own, and tokens that are lost do not end them.
        lease = await store.grant(30)
        await store.transact([], [Put("/tradewind/leased", b"1", lease)])
        with pytest.raises(StoreRefused, match="permission denied"):
            await store.transact([], [Put("/other", b"1", lease)])
        await cluster.restart(0)
        assert await store.keep_alive(lease) >= 30
        await cluster.restart(0)
        await store.revoke(lease)
        assert await store.get("/tradewind/leased") is None
        # A watch that is refused keeps trying, says so, and begins when it may.
        forbidden = store.watch("/other/", revision)
        await take_nothing(forbidden)
        assert not store.status.available
        assert "permission denied" in store.status.detail
        await forbidden.aclose()
        await store.get("/tradewind/a")
        assert store.status.available
    async with opened(cluster.endpoints[0]) as store:  # no user at all
        took_s, error = await seconds(store.transact([], [Put("/tradewind/a", b"3")]))
        assert isinstance(error, StoreRefused)
        assert took_s < 1
    password.write_text("wrong")
    async with opened(cluster.endpoints[0], user="tw", password_file=password) as store:
        with pytest.raises(StoreRefused, match="invalid user ID or password"):
            await store.get("/tradewind/a")
        password.write_text("secret")
        assert await store.get("/tradewind/a") is not None
    await cluster.stop(grace_s=0)


async def test_a_user_where_there_is_no_authentication(etcd: EtcdCluster, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    async with opened(etcd.endpoints[0], user="tw", password_file=password) as store:
        assert await store.get("none") is None


async def _enable_auth(endpoint: str) -> None:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        auth = etcdrpc.AuthStub(channel)
        await auth.UserAdd(etcdrpc.AuthUserAddRequest(name="root", password="root"))
        await auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user="root", role="root"))
        await auth.UserAdd(etcdrpc.AuthUserAddRequest(name="tw", password="secret"))
        await auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name="tw"))
        permission = {"key": b"/tradewind/", "range_end": b"/tradewind0", "permType": 2}
        await auth.RoleGrantPermission(
            etcdrpc.AuthRoleGrantPermissionRequest(name="tw", perm=permission)
        )
        await auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user="tw", role="tw"))
        await auth.AuthEnable(etcdrpc.AuthEnableRequest())


async def test_a_closed_store_connects_no_more(etcd: EtcdCluster) -> None:
    """gRPC would, for as long as somebody refers to its channel."""
    proxy = Proxy(etcd.endpoints[0])
    await proxy.start()
    proxy.stopped = True
    async with opened(proxy.address) as store:
        watch = store.watch("a", 1)
        await take_nothing(watch)
        with pytest.raises(StoreUnavailable):
            await store.get("a")
    await asyncio.sleep(0.02)
    connections = proxy.connections
    assert connections > 1
    await asyncio.sleep(0.6)
    assert proxy.connections == connections
    await proxy.stop()

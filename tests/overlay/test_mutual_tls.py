"""Who gets in: both ends show a certificate of the mesh, in time, with the right role."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from structlog.testing import CapturingLogger

from runtime.identity import Identity, IdentityError
from tests.overlay.certificates import Authority
from tests.overlay.conftest import FAST, Connect, Serve, request, until
from topology.overlay import connection
from topology.overlay.errors import PathDown
from topology.overlay.frames import Accept
from topology.overlay.trust import Trust
from topology.overlay.tunnel import Tunnel


async def reason_for(tunnel: Tunnel) -> str:
    """Why the first attempt failed."""
    await until(lambda: tunnel.status.state == "waiting")
    assert tunnel.status.connected == 0
    with pytest.raises(PathDown):
        tunnel.open(request(), b"{}")
    return tunnel.status.reason


async def test_a_good_client_gets_in_and_both_know_each_other(
    serve: Serve, connect: Connect
) -> None:
    peers: list[str] = []

    def on_exchange(exchange: Any) -> None:
        peers.append(str(exchange.peer))
        exchange.send(Accept(0.0, 0.0, "singapore", "sim"))

    server = await serve(on_exchange)
    tunnel = await connect(server.port)
    assert isinstance(await tunnel.open(request(), b"{}").next(), Accept)
    assert peers == ["edge/tokyo"]
    assert str(tunnel.peer) == "core/singapore"
    assert server.counters.refused == 0
    assert server.counters.accepted == 1


CLIENTS: dict[str, Callable[[Authority], Identity]] = {
    "refused_untrusted": lambda ca: Authority().issue("edge", "tokyo", trusted=ca.pem),
    "refused_expired": lambda ca: ca.issue("edge", "tokyo", days=(-2, -1)),
    "refused_wrong_role": lambda ca: ca.issue("dns", "ns1"),
}


@pytest.mark.parametrize("counter", CLIENTS)
async def test_a_client_that_is_not_one_of_us_is_refused_and_counted(
    counter: str, ca: Authority, serve: Serve, connect: Connect
) -> None:
    served: list[object] = []
    server = await serve(served.append)
    tunnel = await connect(server.port, wait=False, identity=CLIENTS[counter](ca))
    assert "TLS handshake failed" in await reason_for(tunnel)
    assert getattr(server.counters, counter) >= 1
    assert server.counters.accepted == 0
    await until(lambda: server.connections == 0)
    assert served == []


async def test_a_certificate_of_tomorrow_is_refused(
    ca: Authority, serve: Serve, connect: Connect
) -> None:
    server = await serve()
    tunnel = await connect(server.port, wait=False, identity=ca.issue("edge", "tokyo", days=(1, 2)))
    await reason_for(tunnel)
    assert server.counters.refused_expired >= 1


async def test_a_certificate_without_our_uri_has_no_role(
    ca: Authority, serve: Serve, connect: Connect
) -> None:
    server = await serve()
    for uri in ("spiffe://elsewhere/edge/tokyo", "spiffe://tradewind/edge", "https://x/"):
        stranger = ca.issue("edge", "tokyo", uri=uri)
        await reason_for(await connect(server.port, wait=False, identity=stranger))
    assert server.counters.refused_wrong_role >= 3


async def test_a_forged_authority_of_the_same_name_is_refused(
    ca: Authority, serve: Serve, connect: Connect
) -> None:
    server = await serve()
    forger = Authority("mesh CA")
    identity = forger.issue("edge", "tokyo", trusted=ca.pem)
    await reason_for(await connect(server.port, wait=False, identity=identity))
    assert server.counters.refused_untrusted >= 1


async def test_a_leaf_may_not_sign_another_leaf(
    ca: Authority, edge: Identity, serve: Serve, connect: Connect
) -> None:
    server = await serve()
    climber = Authority.from_identity(ca.issue("edge", "mallory"))
    identity = climber.issue("edge", "tokyo", trusted=ca.pem)
    await reason_for(await connect(server.port, wait=False, identity=identity))
    assert server.counters.refused_untrusted >= 1


async def test_a_client_without_a_certificate_is_refused(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve()
    original = connection.configure

    def without(*args: Any, **options: Any) -> Any:
        configuration = original(*args, **options)
        configuration.certificate = configuration.private_key = None
        configuration.certificate_chain = []
        return configuration

    monkeypatch.setattr("topology.overlay.tunnel.configure", without)
    tunnel = await connect(server.port, wait=False)
    assert "certificate required" in await reason_for(tunnel)
    assert server.counters.refused_no_certificate >= 1
    assert server.counters.accepted == 0


SERVERS: dict[str, Callable[[Authority], Identity]] = {
    "other CA": lambda ca: Authority().issue("core", "singapore", trusted=ca.pem),
    "wrong role": lambda ca: ca.issue("edge", "paris"),
    "expired": lambda ca: ca.issue("core", "singapore", days=(-2, -1)),
    "another region's": lambda ca: ca.issue("core", "frankfurt"),
    "a name that only begins alike": lambda ca: ca.issue("core", "singapore2"),
}


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_that_is_not_a_core_of_the_mesh_is_refused(
    kind: str, ca: Authority, serve: Serve, connect: Connect
) -> None:
    server = await serve(identity=SERVERS[kind](ca))
    tunnel = await connect(server.port, wait=False)
    assert "the region was refused" in await reason_for(tunnel)
    assert server.counters.exchanges == 0


async def test_a_rotated_authority_is_trusted_beside_the_old_one(
    ca: Authority, serve: Serve, connect: Connect
) -> None:
    new = Authority("mesh CA 2")
    both = ca.pem + b"\n\n" + new.pem
    server = await serve(identity=new.issue("core", "singapore", trusted=both))
    tunnel = await connect(server.port, identity=ca.issue("edge", "tokyo", trusted=both))
    assert tunnel.connected


async def test_certificates_are_renewed_while_both_run(
    ca: Authority, serve: Serve, connect: Connect
) -> None:
    server = await serve()
    tunnel = await connect(server.port)
    server.use(ca.issue("core", "singapore.2"))
    tunnel.use(ca.issue("edge", "tokyo-2"))
    assert str(tunnel.peer) == "core/singapore"
    assert tunnel._connection is not None
    tunnel._connection.close("renewed")
    await until(lambda: tunnel.status.connected == 2)
    assert str(tunnel.peer) == "core/singapore.2"
    assert {str(peer.quic.peer) for peer in server._connections} >= {"edge/tokyo-2"}


def test_an_unusable_identity_is_an_error_at_once(ca: Authority, edge: Identity) -> None:
    for part in ("certificate_pem", "key_pem", "ca_pem"):
        broken = msgspec.structs.replace(edge, **{part: b"nonsense"})
        with pytest.raises(IdentityError):
            Tunnel("singapore", "127.0.0.1:1", broken)


def test_a_ca_file_without_a_certificate_is_an_error_at_once() -> None:
    with pytest.raises(IdentityError):
        Trust(b"", ("core",))
    with pytest.raises(IdentityError):
        Trust(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ("core",))


async def test_refusals_are_logged_at_most_once_a_second(
    ca: Authority, serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CapturingLogger()
    monkeypatch.setattr("topology.overlay.refusals.log", log)
    server = await serve()
    identity = ca.issue("dns", "ns1")
    for _ in range(4):
        await connect(server.port, wait=False, identity=identity, settings=FAST)
    await until(lambda: server.counters.refused_wrong_role >= 8)
    await asyncio.sleep(0)
    assert 1 <= len([call for call in log.calls if "peers were refused" in call.args]) <= 2

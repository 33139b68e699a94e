"""An edge reaches a core through another region's core: real sockets, real handshakes."""

from __future__ import annotations

from tests.overlay.certificates import Authority
from tests.overlay.conftest import Connect, Serve, request, until
from tests.overlay.test_tunnel import read
from topology.overlay.tunnel import Tunnel


async def test_through(serve: Serve, connect: Connect, ca: Authority) -> None:
    frankfurt = await serve(identity=ca.issue("core", "frankfurt"))
    dubai = await serve(
        identity=ca.issue("core", "singapore"),
        route=lambda region, turn: f"127.0.0.1:{frankfurt.port}",
    )
    direct = await connect(dubai.port)
    relayed = Tunnel("frankfurt", "via dubai", ca.issue("edge", "tokyo"), via=direct)
    relayed.start()
    try:
        await until(lambda: relayed.connected)
        assert await read(relayed.open(request(), b"x" * 20000)) == "x" * 20000
        assert dubai.relay.counters.forwarded > 10
        print(dubai.relay.counters)
    finally:
        await relayed.close()

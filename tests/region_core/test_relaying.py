"""Cores as relays: where the map sends what is to go on, and two whole cores with an edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from region_core.relaying import address_of
from runtime.identity import Identity
from tests.region_core.cores import RunningCore, frame, identity
from tests.region_core.test_overlay_ingress import body, read, text, until
from tests.topology.worlds import base, document, region
from topology.overlay.tunnel import Tunnel
from topology.snapshot import Snapshot


def onward(source: str, target: str, address: str | None) -> dict[str, Any]:
    more = {} if address is None else {"address": address}
    ends = {"source": f"Region/{source}", "target": f"Region/{target}"}
    return document("Link", f"{source}-{target}", rtt_ms=10, **ends, **more)


def test_a_link_says_where_else_the_regions_cores_in_turn() -> None:
    tokyo = region("tokyo", "JP")
    tokyo["spec"]["cores"] = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    snapshot = base(
        tokyo, onward("dubai", "singapore", "127.0.0.9:5"), onward("dubai", "tokyo", None)
    )
    assert address_of(snapshot, "dubai", "singapore", 7) == "127.0.0.9:5"
    assert address_of(snapshot, "frankfurt", "singapore", 7) == "127.0.0.1:4433"
    assert [address_of(snapshot, "dubai", "tokyo", turn) for turn in (0, 1, 2, 3, 2**53)] == [
        f"127.0.0.1:{port}" for port in (1, 2, 3, 1, 3)
    ]


def test_never_to_itself_nor_to_what_nobody_knows() -> None:
    assert address_of(base(), "dubai", "dubai", 0) is None
    assert address_of(base(), "dubai", "atlantis", 0) is None
    assert address_of(Snapshot.empty(), "dubai", "frankfurt", 0) is None


async def test_an_edge_reaches_one_core_through_another(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    async with RunningCore(pki) as frankfurt:
        files = identity(pki, "core", "dubai")
        own = {name: str(getattr(files, name)) for name in ("certificate", "key", "ca")}
        settings = {"region": "dubai", "identity": own, "relay": {"max_bindings_per_peer": 4}}
        dubai = RunningCore(pki, **settings)
        async with dubai:
            relay = dubai.core.overlay.relay if dubai.core.overlay else None
            assert relay is not None
            edge = Identity.load(identity(pki, "edge", "tokyo"))
            relayed = Tunnel("frankfurt", "via dubai", edge, via=dubai.tunnel)
            relayed.start()
            await until(lambda: "knows no way" in relayed.status.reason)  # no snapshot yet
            assert frankfurt.core.overlay is not None
            address = f"127.0.0.1:{frankfurt.core.overlay.port}"
            dubai.core._use(base(onward("dubai", "frankfurt", address)))
            await until(lambda: relayed.connected)
            frames = await read(relayed.open(frame(), body(max_tokens=5)))
            assert text(frames).startswith("sim:")
            assert frankfurt.core.service.counters.accepted == 1
            shown = dubai.core.metrics.expose().decode()
            assert "tradewind_core_relay_bindings 1" in shown
            assert 'tradewind_core_relay_datagrams_total{direction="out"}' in shown
            assert 'tradewind_core_relay_refused_total{reason="unknown"}' in shown
            assert 'tradewind_core_relay_dropped_total{reason="rate"} 0' in shown
            await relayed.close()
        assert relay.bindings == 0

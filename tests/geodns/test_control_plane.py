"""Geo-DNS and a real control plane: mutual TLS, discovery, refusals, and life without it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import dns.asyncquery
import dns.message
import dns.rcode

from control_plane.changes.plan import Wanted
from control_plane.geodns.service import DnsService
from control_plane.geodns.settings import DnsSettings
from control_plane.service import Replica
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from runtime.shutdown import Shutdown
from runtime.validation import convert
from tests.control_plane.mesh import Mesh, at, serving, until, world
from tests.geodns.worlds import PLACES, ZONE, edge, zone

EDGES = ("tokyo", "london", "sydney")
NAMES = [{"name": "api", "edges": ["*"]}]
RESOURCES = (
    *(r for r in world() if r.kind not in ("Zone", "EdgeSite")),
    *(edge(name) for name in EDGES),
    zone(names=NAMES),
)


@asynccontextmanager
async def resolver(mesh: Mesh, replica: str, last_good: Path) -> AsyncIterator[DnsService]:
    files = mesh.files("dns/ns1")
    raw = {
        "listen": ["127.0.0.1:0"],
        "control_plane": [replica],
        "identity": {n: str(getattr(files, n)) for n in ("certificate", "key", "ca")},
        "last_good": str(last_good),
        "prefixes": PLACES,
        "metrics": None,
        "health": {"enabled": False},
    }
    service = DnsService(convert(raw, DnsSettings, "test"), SystemClock(), Random(1))
    shutdown = Shutdown()
    try:
        await service.start(shutdown)
        yield service
    finally:
        await shutdown.close()


def revision(service: DnsService) -> int:
    return service.answerer.view.snapshot.revision if service.answerer.view else 0


async def ask(service: DnsService) -> dns.message.Message:
    query = dns.message.make_query(f"api.{ZONE}", "A")
    return await dns.asyncquery.udp(query, "127.0.0.1", 2, service.server.addresses[0][1])


def refusal(replica: Replica) -> str:
    """Why the node refused what it was last sent, as `tradewind status` shows it."""
    return "".join(session.nack.reason for session in replica.discovery.sessions if session.nack)


async def apply(replica: Replica, *puts: object) -> int:
    done = await replica.changes.apply(Wanted(puts=tuple(puts)), "operator/alice")  # type: ignore[arg-type]
    return int(done.revision)


async def test_dns_follows_refuses_what_it_cannot_serve_and_outlives_it(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    kept = tmp_path / "state" / "snapshot"
    async with serving(mesh, MemoryStore()) as replica:
        async with resolver(mesh, at(replica), kept) as service:
            first = await apply(replica, *RESOURCES)
            await until(lambda: revision(service) == first)
            assert len((await ask(service)).answer[0]) == 2

            second = await apply(replica, zone(contact="höst@tradewind.test"))
            await until(lambda: "Zone/tradewind.test: contact" in refusal(replica))
            assert revision(service) == first < second
            assert len((await ask(service)).answer[0]) == 2

            third = await apply(replica, zone(ttl_s=99, names=NAMES))
            await until(lambda: revision(service) == third)
            assert (await ask(service)).answer[0].ttl == 99
        address = at(replica)
    # The control plane is gone, and DNS starts anew: it serves what it last had.
    async with resolver(mesh, address, kept) as service:
        assert revision(service) == third
        answer = await ask(service)
        assert (answer.rcode(), answer.answer[0].ttl) == (dns.rcode.NOERROR, 99)

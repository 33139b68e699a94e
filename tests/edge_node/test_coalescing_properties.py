"""Whatever clients and regions do, each client that stays gets the whole answer, in order, once."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from edge_node.forward.memory import Region
from tests.edge_node.crowds import FOREVER, Client, Crowd, in_loop, small_buffers
from tests.edge_node.worlds import ACME, RTT_MS, TEXT, answering, ask, dying, snapshot, upstream
from tests.topology.worlds import document

pytestmark = pytest.mark.usefixtures("small_buffers")
__all__ = ["small_buffers"]


class Visit(Struct, frozen=True):
    """One client, in milliseconds."""

    at: int
    stream: bool
    usage: bool
    deadline: int | None
    stays: int | None
    reads_per_s: float
    named: bool

    def client(self) -> Client:
        body = ask(temperature=0, stream=self.stream)
        if self.usage:
            body |= {"stream_options": {"include_usage": True}}
        headers = {}
        if self.deadline is not None:
            headers["x_tradewind_deadline_ms"] = str(self.deadline)
        if self.named:
            headers["x_request_id"] = "again"
        return Client(body, key=ACME, reads_per_s=self.reads_per_s, **headers)


class Place(Struct, frozen=True):
    """How a region answers; `dies` after so many tokens, each time."""

    first: int
    pause: int
    dies: int | None

    def region(self, name: str) -> Region:
        if self.dies is not None:
            return dying(name, self.dies)
        return answering(name, pause_s=self.pause / 1000, first_s=self.first / 1000)


@st.composite
def visits(draw: st.DrawFn) -> Visit:
    stream = draw(st.booleans())
    return Visit(
        at=draw(st.integers(0, 1_200)),
        stream=stream,
        usage=stream and draw(st.booleans()),
        deadline=draw(st.none() | st.integers(1, 1_500)),
        stays=draw(st.none() | st.integers(0, 1_500)),
        reads_per_s=draw(st.sampled_from([FOREVER, FOREVER, 0.0, 300.0, 3_000.0])),
        named=draw(st.booleans()),
    )


places = st.builds(
    Place,
    first=st.sampled_from([0, 30, 300]),
    pause=st.sampled_from([0, 20, 100]),
    dies=st.none() | st.none() | st.integers(0, 8),
)


@given(
    crowd=st.lists(visits(), min_size=1, max_size=8),
    regions=st.tuples(places, places, places),
    linger_s=st.sampled_from([0.0, 0.3, 60.0]),
)
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_who_stays_gets_it_all(
    crowd: list[Visit], regions: tuple[Place, ...], linger_s: float
) -> None:
    policy = document("Policy", "default", retries={"hedge": False}, cache={"linger_s": linger_s})

    async def main() -> None:
        named = {name: place.region(name) for name, place in zip(RTT_MS, regions, strict=True)}
        world = Crowd(upstream(**named), snapshot(policy))
        came = await happen(world, crowd)
        for visit, client in zip(sorted(crowd, key=lambda v: v.at), came, strict=True):
            check(visit, client, sound=any(place.dies is None for place in regions))
        begun = sum(request.attempt == 1 for _, request, _ in world.regions.sent)
        if linger_s == 60.0 and all(place.dies is None for place in regions):
            assert begun == 1
        await world.settled()

    in_loop(main())


async def happen(world: Crowd, crowd: list[Visit]) -> list[Client]:
    """Clients come and go, in the order in which they come."""
    loop, came = asyncio.get_running_loop(), []
    for visit in sorted(crowd, key=lambda v: v.at):
        await asyncio.sleep(max(0.0, visit.at / 1000 - loop.time()))
        client = world.come(visit.client())
        came.append(client)
        if visit.stays is not None:
            loop.call_later(visit.stays / 1000, client.leave)
    await world.served()
    return came


def check(visit: Visit, client: Client, *, sound: bool) -> None:
    if client.whole:
        assert client.text == TEXT and client.error == ""
        return
    assert TEXT.startswith(client.text if client.streamed else "")
    if client.gone:
        return
    assert client.replies == 1
    late = visit.deadline is not None or visit.reads_per_s < FOREVER
    assert client.error in (["deadline_exceeded"] if late else []) + (
        [] if sound else ["region_unreachable", "no_region_available"]
    )

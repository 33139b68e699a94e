"""Whatever comes over the wire is read within bounds, or refused with its mistakes."""

from __future__ import annotations

import contextlib
import math

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from control_plane.membership import heartbeat as heartbeats
from control_plane.membership.base import region_of_core
from control_plane.membership.errors import InvalidHeartbeat
from tests.membership.replicas import orca
from topology.wire import path_reports
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb

texts = st.text(max_size=330)
floats = st.floats() | st.sampled_from([0.0, 12.5, 599_999.0])
paths = st.builds(
    pb.PathSeen,
    relay=texts,
    up=st.booleans(),
    state=texts,
    rtt_ms=floats,
    extra_ms=floats,
    measured_rtt_ms=floats,
    jitter_ms=floats,
    loss_out=floats,
    loss_back=floats,
    since_s=floats,
    why=texts,
    exchanges=st.integers(0, 2**32 - 1),
)
messages = st.builds(
    pb.Heartbeat,
    node_id=texts,
    incarnation=texts,
    lease=st.integers(-(2**63), 2**63 - 1),
    version=texts,
    addresses=st.lists(texts, max_size=20),
    healthy=st.booleans(),
    draining=st.booleans(),
    leaving=st.booleans(),
    regions=st.lists(
        st.builds(
            pb.RegionSeen,
            region=texts,
            reachable=st.booleans(),
            rtt_ms=floats,
            queue_ms=floats,
            paths=st.lists(paths, max_size=3) | st.just([pb.PathSeen()] * 17),
        ),
        max_size=8,
    ),
    path_events=st.lists(
        st.builds(pb.PathEvent, at_s=floats, region=texts, before=texts, after=texts, why=texts),
        max_size=3,
    )
    | st.just([pb.PathEvent()] * 33),
    orca=st.binary(max_size=64)
    | st.builds(orca, utilisation=floats, tokens_per_s=floats, running=floats, waiting=floats),
)


def within_bounds(heard: heartbeats.Heartbeat) -> bool:
    figures = []
    if heard.load is not None:
        load = heard.load
        figures = [load.utilisation, load.tokens_per_s, load.running, load.waiting]
    distances = [s.rtt_ms for s in heard.regions.values() if s.rtt_ms is not None]
    figures += heard.queue_ms.values()
    said = [heard.incarnation, heard.version, *heard.addresses]
    for path in (path for ways in heard.paths.values() for path in ways):
        measured = (
            path.rtt_ms,
            path.measured_rtt_ms,
            path.jitter_ms,
            path.loss_out,
            path.loss_back,
        )
        figures += [path.extra_ms, path.since_s, *(f for f in measured if f is not None)]
        said += [path.relay, path.state, path.why]
        assert len(path.why) <= path_reports.TEXT_MAX
    for event in heard.events:
        figures.append(event.at_s)
        said += [event.region, event.before, event.after, event.why]
    assert all(len(ways) <= path_reports.PATHS_MAX for ways in heard.paths.values())
    assert len(heard.events) <= path_reports.EVENTS_MAX
    return (
        1 <= len(heard.incarnation) <= heartbeats.INCARNATION_MAX
        and len(heard.version) <= heartbeats.VERSION_MAX
        and len(heard.addresses) <= heartbeats.ADDRESSES_MAX
        and all(0 < len(region) <= heartbeats.REGION_MAX for region in heard.regions)
        and all(math.isfinite(f) and f >= 0 for f in figures)
        and all(0 < d <= heartbeats.RTT_MAX_MS for d in distances)
        and heard.lease >= 0
        and "".join(said).isprintable()
    )


@given(messages)
def test_any_message(message: pb.Heartbeat) -> None:
    try:
        heard = heartbeats.read(message)
    except InvalidHeartbeat as error:
        assert error.problems and all(error.problems)
        assert len(str(error)) < 2_000
        return
    assert within_bounds(heard)
    report = heard.report("dubai", 1.0)
    assert (report is None) == (heard.load is None)
    assert heard.member("core", "dubai", 1.0).healthy == (heard.healthy and not heard.draining)
    nothing = heard.of_regions([])
    assert not (nothing.regions or nothing.paths or nothing.queue_ms or nothing.events)
    relays = {path.relay for ways in heard.paths.values() for path in ways}
    known = {*heard.regions, *relays, *(event.region for event in heard.events)}
    assert heard.of_regions(known) is heard
    for ways in heard.of_regions(heard.regions).paths.values():
        assert all(not path.relay or path.relay in heard.regions for path in ways)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        message = pb.Heartbeat.FromString(data)
    except DecodeError:
        return
    with contextlib.suppress(InvalidHeartbeat):
        assert within_bounds(heartbeats.read(message))


def test_the_region_of_a_core_is_the_longest_that_fits() -> None:
    regions = ["eu", "eu.west", "dubai"]
    of = {name: region_of_core(name, regions) for name in ("eu", "eu.1", "eu.west", "eu.west.2")}
    assert of == {"eu": "eu", "eu.1": "eu", "eu.west": "eu.west", "eu.west.2": "eu.west"}
    assert region_of_core("europe", regions) is None and region_of_core("dubai2", regions) is None

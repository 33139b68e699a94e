"""An edge's ways to regions: told with heartbeats, kept while they are fresh, merged for edges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control_plane.admin.edge_paths import seen_by
from control_plane.directives.observed import RegionSeen
from control_plane.membership.paths import NodePaths
from control_plane.store.memory import MemoryStore
from tests.control_plane.mesh import Mesh, until
from tests.membership.replicas import node, replica, said, stream
from topology.paths import PathChange, PathView
from topology.routing import RegionView
from topology.wire import path_reports
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb
from topology.wire.membership_client import Report
from topology.wire.path_reports import PathReport

STRAIGHT = PathReport(
    region="singapore", relay="", up=False, state="silent", rtt_ms=71.0, since_s=1_700_000_000.5,
    why="no answer to 3 probes for 410 ms",
)  # fmt: skip
VIA_DUBAI = PathReport(
    region="singapore", relay="dubai", up=True, state="up", rtt_ms=260.0, extra_ms=5.0,
    measured_rtt_ms=261.5, jitter_ms=0.0, loss_out=0.0, loss_back=0.25, exchanges=7,
    why="via dubai 260 ms",
)  # fmt: skip
CHANGE = PathChange(1_700_000_000.0, "singapore", "direct", "via dubai", "straight is silent")


def report(*paths: PathReport, events: tuple[PathChange, ...] = ()) -> Report:
    views = {"singapore": RegionView(True, 260.0, queue_ms=40.0)}
    return Report(healthy=True, regions=views, paths=paths, path_events=events)


async def test_ways_and_their_changes_are_known_until_they_are_old(mesh: Mesh) -> None:
    changes = [CHANGE]
    async with (
        replica(mesh, MemoryStore()) as here,
        node(
            mesh, "edge/tokyo", [here.endpoint],
            lambda: report(VIA_DUBAI, STRAIGHT, events=tuple(changes)),
        ),
    ):  # fmt: skip
        await until(here.service.paths)
        told = here.service.paths()["edge/tokyo"]
        assert told.edge == "tokyo"
        assert told.paths == {"singapore": (VIA_DUBAI, STRAIGHT)}
        assert told.queue_ms == {"singapore": 40.0}
        assert told.events == (CHANGE,)
        back = PathChange(1_700_000_009.0, "singapore", "via dubai", "direct", "up again")
        changes.append(back)
        await until(lambda: here.service.paths()["edge/tokyo"].events == (CHANGE, back))
        for at in range(100):
            changes.append(PathChange(1_700_000_010.0 + at, "singapore", "a", "b", f"{at}"))
        del changes[:-32]  # as an edge keeps them
        await until(lambda: here.service.paths()["edge/tokyo"].events == tuple(changes))
    assert here.service.paths() == {}


async def test_another_replica_is_told_all_that_is_kept(mesh: Mesh) -> None:
    store = MemoryStore()
    async with replica(mesh, store) as first, replica(mesh, store) as second:
        endpoints = [first.endpoint, second.endpoint]
        async with node(mesh, "edge/tokyo", endpoints, lambda: report(events=(CHANGE,))):
            await until(lambda: first.service.paths() or second.service.paths())
            heard, other = (first, second) if first.service.paths() else (second, first)
            await heard.service.close()
            await until(other.service.paths, 15)
            assert other.service.paths()["edge/tokyo"].events == (CHANGE,)


async def test_a_new_start_of_the_process_begins_anew(mesh: Mesh) -> None:
    event = {"at_s": 5.0, "region": "dubai", "before": "", "after": "direct", "why": "x"}
    async with replica(mesh, MemoryStore()) as here:
        for incarnation, events in (("a", [event]), ("a", []), ("b", [])):
            async with stream(mesh, "edge/tokyo", here) as raw:
                told = said(incarnation=incarnation, path_events=events)
                await raw.send(**told | {"regions": [{"region": "dubai", "reachable": True}]})
                await raw.reply()
                expected = 1 if incarnation == "a" else 0
                await until(
                    lambda n=expected: len(here.service.paths()["edge/tokyo"].events) == n  # type: ignore[misc]
                )


names = st.text(max_size=30)
reports = st.builds(
    PathReport,
    region=st.just("r"),
    relay=st.sampled_from(["", "a", "b", "c"]),
    up=st.booleans(),
    state=names,
    since_s=st.floats(),
    rtt_ms=st.none() | st.floats(),
    extra_ms=st.floats(),
    measured_rtt_ms=st.none() | st.floats(),
    jitter_ms=st.none() | st.floats(),
    loss_out=st.none() | st.floats(),
    loss_back=st.none() | st.floats(),
    why=st.text(max_size=1_000),
    exchanges=st.integers(),
)
changes = st.builds(
    PathChange, st.floats(), st.just("r"), st.just("direct"), st.just(""), st.text()
)


@given(st.lists(reports, max_size=30, unique_by=lambda r: r.relay), st.lists(changes, max_size=40))
def test_whatever_an_edge_tells_is_within_what_a_replica_takes(
    told: list[PathReport], events: list[PathChange]
) -> None:
    """A mistake would end the heartbeats, and with them the edge's registration."""
    seen = pb.RegionSeen(region="r", paths=path_reports.to_paths(told))
    assert path_reports.path_problems([seen]) == []
    assert path_reports.event_problems(path_reports.to_events(events)) == []
    read = path_reports.read_paths(seen)
    assert [path.relay for path in read] == [path.relay for path in told]


def worker(*paths: PathReport, reachable: bool = True) -> NodePaths:
    first = next((path.rtt_ms for path in paths if path.up), None)
    regions = {"singapore": RegionSeen(reachable, first)}
    return NodePaths("tokyo", "a", 0.0, regions, {"singapore": paths}, {"singapore": 10.0}, ())


def test_workers_that_agree_are_one_view() -> None:
    found = seen_by([worker(VIA_DUBAI, STRAIGHT), worker(VIA_DUBAI, STRAIGHT)])
    assert found.views == {
        "singapore": RegionView(
            True, 260.0, (PathView("dubai", True, 260.0, 5.0), PathView("", False, 71.0)), 10.0
        )
    }
    assert found.why == {"singapore": "via dubai 260 ms"}
    assert found.differ == ()


def test_of_workers_that_differ_most_are_followed_and_it_is_said() -> None:
    up = PathReport("singapore", "", True, "up", 70.0, why="straight 70 ms")
    workers = [worker(VIA_DUBAI, STRAIGHT), worker(up, VIA_DUBAI), worker(up, VIA_DUBAI)]
    found = seen_by(workers)
    assert [(p.relay, p.up) for p in found.views["singapore"].paths] == [
        ("", True),
        ("dubai", True),
    ]
    assert found.why == {"singapore": "straight 70 ms"}
    assert found.differ == (
        "the edge's workers reach singapore differently: direct 2, via dubai 1",
    )


def test_an_edge_that_is_not_heard_has_no_view() -> None:
    assert seen_by([]).views == {}

"""What several replicas see, as one: an edge's load and its heartbeats may go to different ones."""

from __future__ import annotations

from itertools import permutations

from control_plane.directives.observed import ClassLoad, EdgeReport, Observed, RegionSeen, union
from control_plane.director.local import merged

LOAD = EdgeReport(
    "edge/tokyo", "tokyo", 99.5, {"vip:dubai": ClassLoad(2.0, 100.0)},
    {"dubai": RegionSeen(True, None, 2.0, 0.1, 200.0)}, {"acme": 2.0}, load_at_s=99.5,
)  # fmt: skip
SEEN = {"dubai": RegionSeen(False, 40.0), "frankfurt": RegionSeen(True, 90.0)}


def test_load_and_heartbeats_at_different_replicas_are_joined_whoever_speaks_first() -> None:
    parts = (
        Observed(100.0, merged({"edge/tokyo": LOAD}, {}, 100.0)),
        Observed(100.0, merged({}, {"edge/tokyo": SEEN}, 100.0)),
        Observed(100.0),
    )
    for order in permutations(parts):
        (report,) = union(order, 100.0).edges.values()
        assert report.demand == LOAD.demand
        assert report.tenants == LOAD.tenants
        assert report.regions == {
            "dubai": RegionSeen(False, 40.0, 2.0, 0.1, 200.0),
            "frankfurt": RegionSeen(True, 90.0),
        }
        assert (report.load_at_s, report.seen_at_s) == (99.5, 100.0)


def test_of_two_load_reports_the_newer_counts() -> None:
    old = EdgeReport("edge/tokyo", "tokyo", 96.0, {"vip:dubai": ClassLoad(9.0)}, load_at_s=96.0)
    both = merged({"edge/tokyo": LOAD}, {"edge/tokyo": SEEN}, 100.0)
    for order in permutations((Observed(100.0, both), Observed(100.0, {"edge/tokyo": old}))):
        (report,) = union(order, 100.0).edges.values()
        assert report.demand == LOAD.demand
        assert report.regions["dubai"].reachable is False

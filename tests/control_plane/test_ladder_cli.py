"""`tradewind ladder` against real replicas that hear real heartbeats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from control_plane.admin import edge_ladder
from control_plane.cli.ladder_view import News
from control_plane.cli.main import app
from control_plane.membership.ladder import NodeLadder
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import Background, Mesh, until, world
from topology.routing import RegionView
from topology.snapshot import Snapshot
from topology.wire.gen.tradewind.v1 import admin_pb2, membership_pb2
from topology.wire.ladder_reports import (
    StandingReport,
    read_standings,
    standing_problems,
    to_standings,
)
from topology.wire.membership_client import MembershipClient, Report

NOW_S = SystemClock().wall()
STANDINGS = (
    StandingReport("vip", "full", NOW_S - 7200, 0.0, "there is room", {"full": 12.0}),
    StandingReport(
        "batch", "stale", NOW_S - 40, 0.91, "91% of what looked for room found none in time",
        {"stale": 31.5, "refused": 4.0},
    ),
)  # fmt: skip


class World:
    """Two replicas, of which the second hears the edge in Tokyo; nobody hears London."""

    def __init__(self, mesh: Mesh, one: Background, other: Background) -> None:
        self.mesh, self.one, self.other = mesh, one, other

    def start(self) -> None:
        self.one.apply(*world())
        self.other.call(self._start_heartbeats())
        ladders = self.other.replica.direction.heartbeats.ladders
        self.other.call(until(ladders))
        for replica in (self.one, self.other):
            catalog = replica.replica.catalog
            replica.call(until(lambda c=catalog: c.view.snapshot.edges))  # type: ignore[misc]

    async def _start_heartbeats(self) -> None:
        self.heartbeats = MembershipClient(
            "edge/tokyo",
            [self.other.endpoint],
            lambda: self.mesh.identity("edge/tokyo"),
            lambda: Report(True, regions={"singapore": RegionView(True, 71.0)}, ladder=STANDINGS),
            SystemClock(),
            Random(3),
        )
        self.heartbeats.start()

    def __call__(self, *arguments: str) -> Result:
        endpoints = f"{self.one.endpoint},{self.other.endpoint}"
        options = ["--endpoint", endpoints, "--identity", str(self.mesh.directory("viewer/ada"))]
        return CliRunner().invoke(app, [*options, "ladder", *arguments])


class Shared(MemoryStore):
    """One store under two replicas."""

    async def close(self) -> None:
        return


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    mesh, store = Mesh(tmp_path_factory.mktemp("mesh")), Shared()
    with Background(mesh, store) as one, Background(mesh, store) as other:
        found = World(mesh, one, other)
        found.start()
        try:
            yield found
        finally:
            other.call(found.heartbeats.close())


def test_the_table(told: World) -> None:
    result = told()
    assert result.exit_code == 0, result.output
    heading, vip, batch = result.stdout.splitlines()
    assert heading.startswith("EDGE") and heading.endswith("WHY")
    for text in ("tokyo", "vip", "full", "2h", "0.00", "full 12", "there is room"):
        assert text in vip
    for text in ("batch", "stale", "0.91", "stale 31.5, refused 4", "91% of what looked"):
        assert text in batch
    assert "note: not heard by any replica that was asked: london" in result.stderr


def test_data(told: World) -> None:
    data = json.loads(told("--edge", "tokyo", "-o", "json").stdout)
    (edge,) = data["edges"]
    assert (edge["edge"], edge["node"]) == ("tokyo", "edge/tokyo")
    assert edge["standing"][1]["recent_per_s"] == {"refused": 4.0, "stale": 31.5}
    assert json.loads(told("--edge", "london", "-o", "json").stdout)["unheard"] == ["london"]


def test_an_unknown_edge(told: World) -> None:
    result = told("--edge", "atlantis")
    assert result.exit_code == 1
    assert "no EdgeSite 'atlantis'" in result.stderr
    assert "Traceback" not in result.output


def test_what_heartbeats_carry_comes_back() -> None:
    carried = to_standings(STANDINGS)
    assert not standing_problems(carried)
    assert read_standings(carried) == STANDINGS
    wild = StandingReport(
        "vip", "full", float("nan"), float("inf"), "a\nb" + "c" * 5000, {"full": -1.0}
    )
    assert not standing_problems(to_standings([wild]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tier": "gold"},
        {"quality": "splendid"},
        {"since_s": -1.0},
        {"pressure": float("nan")},
        {"pressure": 1e30},
        {"why": "x" * 5000},
        {"why": "a\x1b[2Jb"},
        {"recent": {"mine": 1.0}},
        {"recent": {"full": float("inf")}},
    ],
)
def test_wrong_heartbeats_are_refused(wrong: dict[str, Any]) -> None:
    good = {"tier": "vip", "quality": "full", "since_s": 1.0, "pressure": 0.0, "why": ""}
    assert standing_problems([membership_pb2.Standing(**(good | wrong))])  # type: ignore[arg-type]


def test_each_tier_is_told_once() -> None:
    twice = to_standings([STANDINGS[0], STANDINGS[0]])
    assert standing_problems(twice) == ["ladder: each tier once"]


def test_an_answer_fits_a_message_whatever_edges_tell() -> None:
    tiers = ("vip", "standard", "batch")
    told = tuple(StandingReport(tier, "full", 1.0, 0.0, "\U0001f300" * 400) for tier in tiers)
    heard = {f"edge/e{i}": NodeLadder(f"e{i}", 1.0, told) for i in range(2_000)}
    answer = edge_ladder.answer(Snapshot.empty(), heard, "", 1.0)
    assert answer.ByteSize() < 4 * 2**20  # what gRPC takes
    assert answer.omitted == 2_000 - len(answer.edges)


def test_a_watch_tells_each_change_once() -> None:
    news = News()

    def at(quality: str) -> list[str]:
        standing = membership_pb2.Standing(tier="vip", quality=quality, since_s=NOW_S, why="so")
        edges = [admin_pb2.EdgeStanding(node="edge/tokyo", heard_s=NOW_S, standing=[standing])]
        return list(news.of(admin_pb2.LadderResponse(edges=edges, now_s=NOW_S), []))

    assert at("full")[0].startswith("EDGE")
    assert at("full") == []
    (change,) = at("stale")
    assert "tokyo vip: full -> stale: so" in change
    assert at("stale") == []

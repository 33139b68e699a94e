"""`tradewind paths` against real replicas that hear real heartbeats."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from control_plane.cli.main import app
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import Background, Mesh, until, world
from topology.paths import PathChange
from topology.routing import RegionView
from topology.wire.membership_client import MembershipClient, Report
from topology.wire.path_reports import PathReport

NOW_S = SystemClock().wall()
STRAIGHT = PathReport(
    region="singapore", relay="", up=False, state="silent", rtt_ms=71.0, measured_rtt_ms=71.2,
    jitter_ms=1.4, loss_out=0.0, loss_back=0.3, since_s=NOW_S - 40,
    why="no answer to 3 probes for 410 ms",
)  # fmt: skip
VIA_FRANKFURT = PathReport(
    region="singapore", relay="frankfurt", up=True, state="up", rtt_ms=388.0, extra_ms=5.0,
    measured_rtt_ms=388.4, jitter_ms=0.2, loss_out=0.004, loss_back=0.0, since_s=NOW_S - 7200,
    exchanges=12, why="via frankfurt 388 ms; straight is silent (no answer to 3 probes for 410 ms)",
)  # fmt: skip
CHANGE = PathChange(
    NOW_S - 40, "singapore", "direct", "via frankfurt", "straight is silent; via frankfurt 388 ms"
)


class Tokyo:
    """An edge's heartbeats, as it would send them; `events` may grow."""

    def __init__(self) -> None:
        self.events = [CHANGE]

    def report(self) -> Report:
        views = {"singapore": RegionView(True, 388.0), "frankfurt": RegionView(True, 227.0)}
        paths = (VIA_FRANKFURT, STRAIGHT)
        return Report(healthy=True, regions=views, paths=paths, path_events=tuple(self.events))


class World:
    """Two replicas, of which the second hears the edge in Tokyo; nobody hears London."""

    def __init__(self, mesh: Mesh, one: Background, other: Background) -> None:
        self.mesh = mesh
        self.one = one
        self.other = other
        self.tokyo = Tokyo()

    def start(self) -> None:
        self.one.apply(*world())
        self.other.call(self._start_heartbeats())
        for replica in (self.one, self.other):
            regions = replica.replica.catalog
            replica.call(until(lambda r=regions: r.view.snapshot.regions))  # type: ignore[misc]
        paths = self.other.replica.direction.heartbeats.paths
        # Of a region that the catalog did not know yet, nothing was kept.
        self.other.call(until(lambda: paths()["edge/tokyo"].paths if paths() else None))

    async def _start_heartbeats(self) -> None:
        self.heartbeats = MembershipClient(
            "edge/tokyo",
            [self.other.endpoint],
            lambda: self.mesh.identity("edge/tokyo"),
            self.tokyo.report,
            SystemClock(),
            Random(3),
        )
        self.heartbeats.start()

    @property
    def options(self) -> list[str]:
        endpoints = f"{self.one.endpoint},{self.other.endpoint}"
        return ["--endpoint", endpoints, "--identity", str(self.mesh.directory("viewer/ada"))]

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*self.options, "paths", *arguments])

    def data(self, *arguments: str) -> Any:
        result = self(*arguments, "-o", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


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
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == [
        "EDGE", "REGION", "PATH", "STATE", "RTT", "JITTER", "LOSS", "OUT/BACK", "EXCHANGES",
        "SINCE", "WHY",
    ]  # fmt: skip
    by_path = {(row.split()[1], " via " in row): row for row in rows}
    used, cut = by_path["singapore", True], by_path["singapore", False]
    for text in (
        "tokyo ",
        " * ",
        "via frankfurt",
        " up ",
        "388 ms",
        "0.2 ms",
        "0.4%/0%",
        "12",
        "2h",
    ):
        assert text in used
    assert "via frankfurt 388 ms; straight is silent" in used
    for text in ("direct", "silent", "71 ms", "1.4 ms", "0%/30%", "no answer to 3 probes"):
        assert text in cut
    assert "*" not in cut
    assert "reached" in by_path["frankfurt", False], "a region of whose ways nothing was told"
    assert "note: not heard by any replica that was asked: london" in result.stderr


def test_one_edge_and_one_region(told: World) -> None:
    regions = told.data("--edge", "tokyo", "--region", "singapore")["edges"][0]["regions"]
    assert [region["region"] for region in regions] == ["singapore"]
    used, cut = regions[0]["paths"]
    assert (used["path"], used["relay"], used["in_use"]) == ("via frankfurt", "frankfurt", True)
    assert (cut["path"], cut["relay"], cut["in_use"], cut["up"]) == ("direct", None, False, False)
    assert cut["loss_back"] == pytest.approx(0.3)
    data = told.data("--edge", "london")
    assert (data["edges"], data["unheard"]) == ([], ["london"])
    result = told("--edge", "london")
    assert result.stdout == "no path is known\n"
    assert "not heard by any replica that was asked: london" in result.stderr


def test_the_changes(told: World) -> None:
    shown = told("--events").stdout
    assert "BEFORE" in shown
    assert "straight is silent; via frankfurt 388 ms" in shown
    assert told.data()["edges"][0]["events"][0]["after"] == "via frankfurt"
    assert told("--events", "--region", "frankfurt").stdout.startswith("no path has changed")


def test_names_that_are_unknown(told: World) -> None:
    for option, kind, has in (("--edge", "EdgeSite", "tokyo"), ("--region", "Region", "frankfurt")):
        result = told(option, "atlantis")
        assert result.exit_code == 1
        assert f"no {kind} 'atlantis'" in result.stderr
        assert has in result.stderr
        assert "Traceback" not in result.output


def test_a_replica_that_does_not_answer_is_named(told: World) -> None:
    endpoints = f"127.0.0.1:1,{told.other.endpoint}"
    result = told("--endpoint", endpoints)
    assert result.exit_code == 0
    assert "via frankfurt" in result.stdout
    assert "note: a replica was not heard:" in result.stderr
    assert "one that did not answer may hear them" in result.stderr
    nobody = told("--endpoint", "127.0.0.1:1")
    assert nobody.exit_code == 5


def test_explain_says_the_way_and_why(told: World) -> None:
    options = [*told.options, "explain", "--edge", "tokyo", "--model", "smol"]
    result = CliRunner().invoke(app, [*options, "--tenant", "acme"])
    assert result.exit_code == 0, result.output
    assert "region: frankfurt (direct)" in result.stdout
    assert "measured 388 ms away via frankfurt" in result.stdout
    assert "its ways: via frankfurt 388 ms; straight is silent" in result.stdout
    shown = CliRunner().invoke(app, [*options, "--tenant", "acme", "-o", "json"])
    regions = {region["name"]: region for region in json.loads(shown.stdout)["regions"]}
    assert regions["singapore"]["path"] == "via frankfurt"


def test_completion(told: World) -> None:
    words = ["tradewind", *told.options, "paths", "--edge", "t"]
    environment = os.environ | {
        "_TRADEWIND_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [str(Path(sys.executable).parent / "tradewind")],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.stdout.split() == ["tokyo"]


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Killed at the end, and after half a minute in any case: reading from it then ends too."""
    timer = threading.Timer(30, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def test_watching_tells_each_change_once(told: World) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "control_plane.cli.main", *told.options, "paths", "--watch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with ended(watching):
        assert watching.stdout is not None
        lines = []
        for line in watching.stdout:
            lines.append(line)
            if "not heard" in line:
                break
        assert "via frankfurt" in "".join(lines)
        back = PathChange(NOW_S, "singapore", "via frankfurt", "direct", "straight is up again")
        told.other.do(lambda: told.tokyo.events.append(back))
        line = watching.stdout.readline()
        assert "tokyo to singapore: via frankfurt -> direct: straight is up again" in line
        watching.send_signal(signal.SIGINT)
        rest, _ = watching.communicate(timeout=20)
        assert rest == ""
        assert watching.returncode == 0
    told.other.do(lambda: told.tokyo.events.pop())


def test_on_a_terminal_the_table_is_redrawn(told: World) -> None:
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "250", "LINES": "50"}
    command = [*told.options, "paths", "--edge", "tokyo", "--watch"]
    watching = subprocess.Popen(
        [sys.executable, "-m", "control_plane.cli.main", *command],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with ended(watching):
        while shown.count(b"no answer to 3 probes for 410 ms") < 5:  # twice in each table
            shown += os.read(ours, 65_536)
        assert b"\x1b[1A" in shown, "the cursor goes back up"
        watching.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
            while some := os.read(ours, 65_536):
                shown += some
        assert watching.wait(20) == 0
        assert b"Traceback" not in shown
    os.close(ours)

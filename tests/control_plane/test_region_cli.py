"""`tradewind region` and `tradewind rollout` against a replica that directs, over mutual TLS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport

from control_plane.admin.client import AdminClient
from control_plane.admin.errors import UNAVAILABLE, AdminError
from control_plane.cli import region_progress, rollout
from control_plane.cli.main import app
from control_plane.cli.options import Format
from control_plane.cli.region_progress import Goal, Moment, RegionNow
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from runtime.errors import TradewindError
from tests.control_plane.mesh import Background, Mesh, region, resource, world
from topology.resources import Resource
from topology.snapshot import Snapshot
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.membership_client import MembershipClient, Report


class Desk:
    """An operator's desk: the command line, and what the regions report of themselves."""

    def __init__(self, mesh: Mesh, background: Background) -> None:
        self.mesh = mesh
        self.background = background
        self.load = {"singapore": 0.1, "frankfurt": 0.1}

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*self.options, *arguments])

    @property
    def options(self) -> list[str]:
        identity = str(self.mesh.directory("operator/alice"))
        return ["--endpoint", self.background.endpoint, "--identity", identity]

    def ok(self, *arguments: str) -> Result:
        result = self(*arguments)
        assert result.exit_code == 0, result.output
        return result

    def data(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "-o", "json").stdout)

    def state(self, name: str) -> dict[str, Any]:
        return next(row for row in self.data("region", "list") if row["name"] == name)

    def overrides(self) -> dict[str, Any]:
        return dict(self.background.replica.catalog.view.snapshot.overrides)

    @asynccontextmanager
    async def core(self, name: str) -> AsyncIterator[None]:
        client = MembershipClient(
            f"core/{name}",
            [self.background.endpoint],
            lambda: self.mesh.identity(f"core/{name}"),
            lambda: Report(healthy=True, orca=self._orca(name)),
            SystemClock(),
            Random(3),
        )
        client.start()
        try:
            yield
        finally:
            await client.close()

    def _orca(self, name: str) -> bytes:
        return bytes(OrcaLoadReport(application_utilization=self.load[name]).SerializeToString())

    def with_cores(self) -> None:
        for name in self.load:
            self.background.keep(self.core(name))
        self.until(lambda: all(self.state(name)["utilisation"] is not None for name in self.load))

    def until(self, what: Callable[[], object], timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)


@pytest.fixture
def desk(mesh: Mesh) -> Iterator[Desk]:
    with Background(mesh, MemoryStore()) as background:
        background.apply(*world(), region("dubai", "AE"))
        yield Desk(mesh, background)


WHY = ("--reason", "upgrade")


def test_no_percent_is_all_and_zero_percent_is_none(desk: Desk) -> None:
    """Of a client that is no command line: a 0 that it computed must not drain everything."""
    with AdminClient([desk.background.endpoint], desk.mesh.identity("operator/alice")) as client:
        asked = pb.SetOverrideRequest(regions=["dubai"], action="drain", reason="x", percent=0.0)
        client.set_override(asked)
        assert desk.overrides()["dubai"].percent == 0.0
        asked.ClearField("percent")
        client.set_override(asked)
        assert desk.overrides()["dubai"].percent == 100.0


def test_a_drain_has_a_deadline_for_what_still_runs_there(desk: Desk) -> None:
    desk.ok("region", "drain", "dubai", "--no-wait", *WHY)
    assert desk.overrides()["dubai"].deadline_s is None
    desk.ok("region", "failover", "dubai", "--deadline", "2m", "--no-wait", *WHY)
    assert desk.state("dubai")["deadline_s"] == 120.0
    assert desk.overrides()["dubai"].deadline_s == 120.0
    desk.ok("region", "drain", "dubai", "--deadline", "0s", "--no-wait", *WHY)
    assert desk.overrides()["dubai"].deadline_s == 0.0
    desk.ok("region", "drain", "dubai", "--over", "1m", "--deadline", "30s", "--no-wait", *WHY)
    assert desk.overrides()["dubai"].deadline_s == 30.0
    part = desk("region", "drain", "dubai", "--to", "50", "--deadline", "30s", *WHY)
    assert part.exit_code != 0
    assert "a drain of 100%" in part.output
    nonsense = desk("region", "drain", "dubai", "--deadline", "soon", *WHY)
    assert nonsense.exit_code == 2
    assert "--deadline 'soon'" in nonsense.output
    assert desk.overrides()["dubai"].deadline_s == 30.0  # as it was
    assert "--deadline" in desk.ok("region", "drain", "--help").output


def test_several_regions_are_drained_together_or_not_at_all(desk: Desk) -> None:
    told = desk.ok("region", "drain", "singapore", "dubai", "--to", "30", *WHY)
    assert "singapore, dubai drained (30%); revision" in told.stdout
    assert set(desk.overrides()) == {"singapore", "dubai"}
    refused = desk("region", "drain", "singapore", "frankfurt", *WHY)
    assert refused.exit_code == 4
    assert "--force-residency" in refused.stderr
    assert "--force-last-region" in refused.stderr
    assert desk.overrides()["singapore"].percent == 30, "nothing of it was done"
    unknown = desk("region", "drain", "dubai", "atlantis", *WHY)
    assert (unknown.exit_code, "atlantis" in unknown.stderr) == (2, True)
    assert desk.overrides()["dubai"].percent == 30


def test_regions_are_selected_by_where_they_lie(desk: Desk) -> None:
    desk.ok("region", "drain", "--in", "SG", "--in", "AE", *WHY)
    assert set(desk.overrides()) == {"singapore", "dubai"}
    desk.ok("region", "restore", "--in", "AE", *WHY)
    assert set(desk.overrides()) == {"singapore"}
    both = desk("region", "restore", "singapore", "--in", "SG", *WHY)
    assert both.exit_code == 2


@pytest.mark.parametrize(
    "selector", [["--in", "XX"], ["--in", ""], []], ids=["nowhere", "empty", "none"]
)
def test_an_empty_selector_is_refused_and_never_all(desk: Desk, selector: list[str]) -> None:
    for verb in ("drain", "failover", "restore"):
        refused = desk("region", verb, *selector, *WHY)
        assert refused.exit_code == 4
        assert "--force-empty-selector" in refused.stderr
        forced = desk("region", verb, *selector, *WHY, "--force-empty-selector")
        assert (forced.exit_code, desk.overrides()) == (0, {})
        assert "nothing to do" in forced.stdout
    quoted = desk("region", "drain", "", *WHY)
    assert (quoted.exit_code, "empty is not all" in quoted.stderr) == (2, True)


def test_a_dry_run_shows_the_forecast_and_the_refusals_and_changes_nothing(desk: Desk) -> None:
    told = desk("region", "drain", "frankfurt", "--dry-run", "--over", "5m", *WHY)
    assert told.exit_code == 4
    assert "+ Override/frankfurt" in told.stdout
    assert "orecast" in told.output
    assert "would be refused" in told.stdout
    assert "--force-residency" in told.stdout
    fine = desk.ok("region", "drain", "singapore", "--dry-run", *WHY)
    assert "would be: singapore drained (100%)" in fine.stdout
    assert desk.overrides() == {}


def test_a_paced_drain_is_followed_to_its_end_and_restored_the_same_way(desk: Desk) -> None:
    desk.with_cores()
    desk.background.node("edge/tokyo")
    told = desk.ok("region", "drain", "singapore", "--to", "40", "--over", "1s", *WHY)
    assert "singapore begins to be drained, to 40%" in told.stdout
    assert "40.0% of 40%; 1 of 1 nodes have it; load:" in told.stderr
    assert "frankfurt 10%" in told.stderr
    row = desk.state("singapore")
    assert (row["state"], row["percent"], row["target"]) == ("drained 40%", 40.0, 40.0)
    told = desk.ok("region", "restore", "singapore", "--over", "1s", *WHY)
    assert "singapore takes all of its requests" in told.stderr
    assert desk.overrides() == {}
    [entry, *_] = desk.data("history")
    assert (entry["author"], entry["reason"]) == (
        "control/cp-1",
        "the paced restore is complete",
    )


def test_a_paced_drain_waits_for_a_receiver_and_says_so(desk: Desk) -> None:
    desk.with_cores()
    desk.load["frankfurt"] = 0.97
    desk.until(lambda: desk.state("frankfurt")["utilisation"] > 0.9)
    desk.ok("region", "drain", "singapore", "--over", "60s", "--no-wait", *WHY)
    why = "frankfurt is at 97% of its capacity, above 90%"
    desk.until(lambda: why in (desk.state("singapore")["paused"] or ""))
    assert "singapore waits at 0%: frankfurt is at 97%" in desk.ok("region", "list").stdout
    gave_up = desk("region", "drain", "singapore", "--over", "30s", "--timeout", "1", *WHY)
    assert gave_up.exit_code == 8
    assert f"WAITS: {why}" in gave_up.stderr
    assert "not there yet after 1 s" in gave_up.stderr
    assert "to take it back: tradewind region restore singapore" in gave_up.stderr


def test_a_drain_that_somebody_replaces_is_not_followed_any_longer(desk: Desk) -> None:
    desk.with_cores()
    results: list[Result] = []
    command = ("region", "drain", "singapore", "--over", "10m", *WHY)
    thread = threading.Thread(target=lambda: results.append(run_apart(desk, *command)))
    thread.start()
    desk.until(lambda: "singapore" in desk.overrides())
    time.sleep(1.0)
    held = desk.overrides()["singapore"]
    put = resource("Override", "singapore", **{**_plain(held), "percent": 20.0, "over_s": 0.0})
    desk.background.apply(put)
    thread.join(15)
    [result] = results
    assert result.returncode == 8
    assert "the override of singapore was replaced: it goes to 20%" in result.stderr


def test_interrupting_the_command_does_not_stop_the_drain_and_says_how_to(desk: Desk) -> None:
    desk.with_cores()
    command = [*desk.options, "region", "drain", "singapore", "--over", "1m", *WHY]
    process = subprocess.Popen(
        [sys.executable, "-m", "control_plane.cli.main", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    desk.until(lambda: desk.state("singapore")["percent"] > 2.0)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 8, stderr
    assert "the director goes on with it without this command" in stderr
    assert "to hold it where it is: tradewind region drain singapore --to" in stderr
    percent = desk.state("singapore")["percent"]
    desk.until(lambda: desk.state("singapore")["percent"] > percent)


def test_without_a_director_it_says_that_it_stands_still(desk: Desk) -> None:
    direction = desk.background.replica.direction
    desk.background.call(direction.close())
    direction.election._leader = None  # as another replica sees it
    told = desk("region", "drain", "singapore", "--over", "1m", "--timeout", "1", *WHY)
    assert told.exit_code == 8
    assert "STANDS STILL: no director acts" in told.stderr
    assert desk.state("singapore")["percent"] == 0.0


def test_bad_durations(desk: Desk) -> None:
    for option in ("--over", "--expires"):
        wrong = desk("region", "drain", "singapore", option, "soon", *WHY)
        assert wrong.exit_code == 2
        assert "'soon' is no" in wrong.stderr
    early = desk("region", "drain", "singapore", "--over", "10m", "--expires", "1m", *WHY)
    assert (early.exit_code, "before it gets there" in early.stderr) == (2, True)
    assert desk.overrides() == {}


GOAL = Goal(("singapore",), 50.0, 7)


def moment(percent: float, target: float | None, done: int = 2, **more: Any) -> Moment:
    fields = {"director": "cp-1", "nodes": 2, "load": {"frankfurt": 0.5}} | more
    return Moment(regions=(RegionNow("singapore", percent, target, "", 0.0),), done=done, **fields)


def test_when_progress_is_over() -> None:
    assert region_progress.arrived(moment(50.0, 50.0), GOAL)
    assert not region_progress.arrived(moment(50.0, 50.0, done=1), GOAL)
    assert not region_progress.arrived(moment(49.9, 50.0), GOAL)
    assert region_progress.arrived(moment(0.0, None), Goal(("singapore",), 0.0, 7))
    assert not region_progress.arrived(moment(0.0, 0.0), Goal(("singapore",), 0.0, 7))
    assert "expired or was restored" in region_progress.ended_early(moment(0.0, None), GOAL)
    assert not region_progress.ended_early(moment(1.0, 50.0), GOAL)
    before = moment(0.0, None, followed=False)  # of a replica that the change has not reached
    assert not region_progress.ended_early(before, GOAL)
    assert not region_progress.arrived(before, Goal(("singapore",), 0.0, 7))
    [line] = region_progress.lines_of(moment(10.0, 50.0, director=""), GOAL)
    assert line.endswith("STANDS STILL: no director acts")


def staged(**rollout: Any) -> Resource:
    quick = {"canaries": ["tokyo"], "canary_percent": 0, "canary_hold_s": 1, "step_hold_s": 1}
    return resource("Policy", "default", rollout=quick | {"steps": [100]} | rollout)


def test_a_rollout_is_shown_watched_and_goes_on_by_itself(desk: Desk) -> None:
    assert "no change was ever rolled out" in desk.ok("rollout", "status").stdout
    tokyo, london = (desk.background.node(f"edge/{name}") for name in ("tokyo", "london"))
    desk.background.apply(staged(canary_hold_s=2))
    desk.background.apply(region("dubai", "AE", capacity_tokens_per_s=7))
    told = desk.ok("rollout", "status").stdout
    assert ": canary" in told
    assert "touches Region/dubai" in told
    desk.until(lambda: tokyo.snapshot.regions["dubai"].capacity_tokens_per_s == 7)
    assert london.snapshot.regions["dubai"].capacity_tokens_per_s == 100
    watched = desk.ok("rollout", "status", "--watch").stdout
    assert watched.splitlines()[-1].startswith("change 3: done, 100% of nodes")
    desk.until(lambda: london.snapshot.regions["dubai"].capacity_tokens_per_s == 7)
    data = desk.data("rollout", "status")
    assert (data["status"], data["under_way"], data["keys"]) == ("done", False, ["Region/dubai"])


def test_a_rollout_is_paused_resumed_and_aborted(desk: Desk) -> None:
    desk.background.apply(staged(canary_hold_s=600))
    desk.background.apply(region("dubai", "AE", capacity_tokens_per_s=7))
    assert (
        "paused by operator/alice: looking"
        in desk.ok("rollout", "pause", "--reason", "looking").stdout
    )
    assert desk.data("rollout", "resume")["status"] == "canary"
    assert desk.data("rollout", "status")["next_step_s"]
    store: Any = desk.background.replica.store
    desk.background.do(lambda: store.cut("etcd is down"))
    desk.until(lambda: desk.data("status")["stale_since_s"])
    told = desk.ok("rollout", "status").stdout
    assert "STANDS STILL: no replica reaches the store" in told
    assert "next step" not in told
    desk.background.do(store.mend)
    desk.until(lambda: "STANDS STILL" not in desk.ok("rollout", "status").stdout)
    told = desk.ok("rollout", "abort", "--reason", "not meant").stdout
    assert "aborted" in told
    assert desk.data("get", "Region", "dubai")["spec"]["capacity_tokens_per_s"] == 100
    again = desk("rollout", "promote")
    assert again.exit_code == 1
    assert "no rollout is under way" in again.stderr


def test_a_node_that_refuses_takes_a_change_back_by_itself(desk: Desk) -> None:
    def picky(snapshot: Snapshot) -> None:
        if snapshot.regions["dubai"].capacity_tokens_per_s == 7:
            raise TradewindError("seven is not for me")

    desk.background.node("edge/tokyo", picky)
    desk.background.apply(staged(canary_hold_s=600))
    desk.background.apply(region("dubai", "AE", capacity_tokens_per_s=7))
    desk.until(lambda: desk.data("rollout", "status")["status"] == "rolled-back")
    data = desk.data("rollout", "status")
    assert "edge/tokyo refuses it" in data["why"]
    assert "seven is not for me" in data["why"]
    assert desk.data("get", "Region", "dubai")["spec"]["capacity_tokens_per_s"] == 100


def run_apart(desk: Desk, *arguments: str) -> Any:
    """In a process of its own: `CliRunner` swaps the standard streams of this one."""
    return subprocess.run(
        [sys.executable, "-m", "control_plane.cli.main", *desk.options, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _plain(spec: Any) -> dict[str, Any]:
    return {"region": spec.region, "action": spec.action, "reason": spec.reason}


class Scripted(AdminClient):
    """Tells one status after another; None: no replica answers."""

    def __init__(self, *script: pb.StatusResponse | None) -> None:
        super().__init__(["cp-1:7400"], identity=None)  # type: ignore[arg-type]
        self.script = list(script)

    def statuses(self) -> list[tuple[str, pb.StatusResponse | AdminError]]:
        told = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return [("cp-1:7400", AdminError(UNAVAILABLE, "gone") if told is None else told)]


def drained(percent: float, revision: int = 7, target: float = 50.0) -> pb.StatusResponse:
    status = pb.StatusResponse(revision=revision, store=pb.StoreStatus(available=True))
    status.director.replica = "cp-1"
    status.regions.add(
        region="singapore",
        override_action="drain",
        override_percent=percent,
        override_target=target,
    )
    return status


def test_replicas_that_are_away_for_a_while_do_not_end_the_watch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    region_progress.follow(Scripted(drained(10.0), None, None, None, drained(50.0)), GOAL, 20.0)
    assert "50.0% of 50%" in capsys.readouterr().err


def test_one_that_never_answers_does() -> None:
    with pytest.raises(AdminError, match="gone"):
        region_progress.follow(Scripted(None), GOAL, 20.0)


def test_a_replica_that_lags_does_not_end_the_watch() -> None:
    lagging = drained(100.0, revision=6, target=100.0)
    region_progress.follow(Scripted(lagging, lagging, drained(50.0)), GOAL, 20.0)


def test_the_word_of_a_replica_that_knows_the_change_counts() -> None:
    lagging, fresh = drained(100.0, revision=6, target=100.0), drained(1.0)
    lagging.director.self, lagging.director.number = True, 99

    class Two(AdminClient):
        def statuses(self) -> list[tuple[str, pb.StatusResponse | AdminError]]:
            return [("cp-1:7400", lagging), ("cp-2:7400", fresh)]

    seen = region_progress.look(Two([], identity=None), GOAL)  # type: ignore[arg-type]
    assert (seen.followed, seen.regions[0].target) == (True, 50.0)


def rolling(status: str, number: int = 3) -> pb.StatusResponse:
    told = pb.StatusResponse()
    told.rollout.exists, told.rollout.number, told.rollout.status = True, number, status
    return told


def test_a_watch_of_a_rollout_outlasts_an_outage_and_tells_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rollout, "_POLL_S", 0.01)
    ends = Scripted(rolling("rolling"), None, None, rolling("done"))
    rollout._watch(ends, Format.TABLE)
    assert "done" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(typer.Exit) as taken_back:
        rollout._watch(Scripted(rolling("canary"), None, rolling("rolled-back")), Format.TABLE)
    assert taken_back.value.exit_code == 10
    with pytest.raises(AdminError, match="gone"):
        rollout._watch(Scripted(None), Format.TABLE)
    monkeypatch.setattr(rollout, "_PATIENCE_S", 0.05)
    with pytest.raises(AdminError, match="gone"):
        rollout._watch(Scripted(rolling("canary"), None), Format.TABLE)

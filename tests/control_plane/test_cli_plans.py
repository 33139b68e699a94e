"""Plans, history, rollback, audit and status on the command line, against a real replica."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from control_plane import keys
from control_plane.admin import messages
from control_plane.directives import state as states
from control_plane.directives.state import Outlook
from control_plane.store.base import Put
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import Background, Mesh, region, resource, until, world
from tests.control_plane.test_cli import Cli, yaml_of

VIP = "vip:frankfurt|singapore"


@pytest.fixture
def cli(mesh: Mesh) -> Iterator[Cli]:
    store = MemoryStore()
    with Background(mesh, store) as background:
        yield Cli(mesh, background, store)


def report_load(cli: Cli, **flows: float) -> None:
    """As the director would have written it, who says no more."""
    told = Outlook(
        at_s=SystemClock().wall(), flows={VIP: flows}, utilisation={"singapore": 0.7}, edges=2
    )
    replica = cli.background.replica

    async def write() -> None:
        await replica.direction.director.close()
        await replica.store.transact([], [Put(keys.OUTLOOK, states.encode(told))])
        await until(lambda: replica.directives.outlook.flows == told.flows)

    cli.background.call(write())


def test_a_dry_run_shows_the_load_that_each_region_would_carry(cli: Cli) -> None:
    cli.background.apply(*world())
    report_load(cli, singapore=70.0, frankfurt=50.0)
    drain = resource("Override", "singapore", region="singapore", action="drain", reason="x")
    dry = cli("apply", "-f", "-", "--dry-run", stdin=yaml_of(drain))
    assert dry.exit_code == 4
    rows = {line.split()[0]: line.split()[1:] for line in dry.stdout.splitlines() if line}
    assert rows["frankfurt"] == ["50", "120", "100", "120%", "OVER"]
    assert rows["singapore"] == ["70", "0", "100", "0%"]
    assert "--force-capacity" in dry.stdout
    told = cli("apply", "-f", "-", "--dry-run", "-o", "json", stdin=yaml_of(drain))
    data = msgspec.json.decode(told.stdout)
    assert told.exit_code == 4
    assert data["forecast"][0] == {
        "region": "frankfurt",
        "known": True,
        "before_tokens_per_s": 50.0,
        "after_tokens_per_s": 120.0,
        "capacity_tokens_per_s": 100.0,
    }
    assert data["refusals"][0]["rule"] == "capacity"
    refused = cli("apply", "-f", "-", stdin=yaml_of(drain))
    assert refused.exit_code == 4
    assert "frankfurt would get 120 of 100 tokens/s" in refused.stderr
    assert cli.data("get", "Override") == []
    assert cli("apply", "-f", "-", "--force-capacity", stdin=yaml_of(drain)).exit_code == 0


def test_without_load_reports_the_forecast_says_that_it_knows_nothing(cli: Cli) -> None:
    cli.background.apply(*world())
    drain = resource("Override", "singapore", region="singapore", action="drain", reason="x")
    told = cli("apply", "-f", "-", "--dry-run", stdin=yaml_of(drain))
    assert told.exit_code == 0
    assert "unknown" in told.stdout
    assert "no forecast of the load per region" in told.stderr
    new = cli("apply", "-f", "-", "--dry-run", stdin=yaml_of(region("dubai", "AE")))
    assert new.stderr == "", "what is new takes no load from anywhere"


def test_delete_as_a_plan(cli: Cli) -> None:
    cli.background.apply(*world())
    dry = cli("delete", "Tenant", "globex", "--dry-run")
    assert dry.exit_code == 0
    assert "- Tenant/globex" in dry.stdout
    assert len(cli.data("get", "Tenant")) == 3
    wrong = cli("delete", "Region", "singapore", "frankfurt", "--dry-run")
    assert wrong.exit_code == 2
    for told in ("Model/smol: spec.regions[0]", "Route/all: spec.regions[1]"):
        assert told in wrong.stderr, "every mistake at once"


def test_history_and_rollback(cli: Cli) -> None:
    first = cli.background.apply(*world())
    slow = region("frankfurt", "EU", latitude=50.1, longitude=8.7, capacity_tokens_per_s=7)
    cli.ok("apply", "-f", "-", "--reason", "slow \x1b[31mdisk", stdin=yaml_of(slow))
    cli.ok("delete", "Tenant", "globex", "--reason", "left")
    told = cli.ok("history")
    assert "spec.capacity_tokens_per_s: 100.0 -> 7.0" in told
    assert "- Tenant/globex" in told
    assert "\x1b" not in told
    [newest, changed, oldest] = cli.data("history")
    assert (newest["author"], newest["reason"], newest["number"]) == ("admin/alice", "left", 3)
    assert oldest["revision"] == first
    assert newest["previous"] == changed["hash"]
    assert cli.data("history", "Region/frankfurt", "--limit", "1")[0]["number"] == 2
    assert [e["number"] for e in cli.data("history", "tenants")] == [3, 1]
    assert cli.data("history", "--before", "2")[0]["number"] == 1
    assert cli("history", "Regoin").exit_code == 2
    assert "no such change" in cli.ok("history", "Region/nowhere")

    back = ("rollback", "--to", str(first), "--reason", "wrong")
    dry = cli(*back, "--dry-run")
    assert dry.exit_code == 0
    assert "+ Tenant/globex" in dry.stdout
    assert "spec.capacity_tokens_per_s: 7.0 -> 100.0" in dry.stdout
    assert len(cli.data("get", "Tenant")) == 2
    assert "1 created, 1 updated" in cli.ok(*back)
    assert cli.data("get", "Region", "frankfurt")["spec"]["capacity_tokens_per_s"] == 100
    assert "nothing; revision" in cli.ok(
        *back[:2], str(cli.data("history")[0]["revision"]), *back[3:]
    )
    unknown = cli("rollback", "--to", "999999", "--reason", "x")
    assert unknown.exit_code == 1
    assert "no change was made at revision 999999" in unknown.stderr
    assert cli("rollback", "--to", "1").exit_code == 2, "a reason is required"
    assert cli("rollback", "--to", "1", "--reason", " ").exit_code == 2


def test_what_is_too_large_is_refused_before_anything_is_done(cli: Cli) -> None:
    long = cli("delete", "Tenant", "x", "--reason", "y" * 1_001)
    assert long.exit_code == 2
    assert "reason: found 1001 characters; allowed: at most 1000" in long.stderr
    many = yaml_of(*(region(f"r{n}") for n in range(121)))
    for how in ((), ("--dry-run",)):
        result = cli("apply", "-f", "-", *how, stdin=many)
        assert result.exit_code == 2
        assert "at most 120 in one transaction: apply it in parts" in result.stderr


def test_audit(cli: Cli) -> None:
    assert "nothing was changed yet" in cli.ok("audit", "verify")
    cli.background.apply(*world())
    many = [resource("Tenant", f"t{n}") for n in range(8)]
    cli.ok("apply", "-f", "-", stdin=yaml_of(*many))
    changed = [resource("Tenant", f"t{n}", tier="vip") for n in range(8)]
    cli.ok("apply", "-f", "-", "--force-many", "--reason", "promo", stdin=yaml_of(*changed))
    told = cli.ok("audit", "list")
    assert [line.split()[0] for line in told.splitlines()] == ["NUMBER", "3", "2", "1"]
    assert "many" in told.splitlines()[1]
    head = cli.data("audit", "verify")
    assert (head["intact"], head["entries"], head["unchained"]) == (True, 3, 0)
    assert f"head: {head['head_hash']}" in cli.ok("audit", "verify")
    entry = cli.background.call(cli.background.replica.store.get(keys.of_audit(2)))
    assert entry is not None
    forged = entry.value.replace(b"admin/alice", b"admin/allie")
    put = Put(entry.key, forged)
    cli.background.call(cli.background.replica.store.transact([], [put]))
    broken = cli("audit", "verify")
    assert broken.exit_code == 9
    assert "broken: entry 3: entry 2 is not the one" in broken.stdout


def test_an_operator_is_told_which_role_would_do(cli: Cli) -> None:
    cli.background.apply(*world())
    denied = cli("delete", "Tenant", "globex", who="operator/bob")
    assert denied.exit_code == 6
    assert "operator/bob may not change Tenant/globex" in denied.stderr
    assert "the role admin may" in denied.stderr
    forced = cli("delete", "Zone", "tradewind.test", "--force-many", who="operator/bob")
    assert forced.exit_code == 6
    assert "--force-many" in forced.stderr
    assert cli("delete", "Zone", "tradewind.test", who="viewer/eve").exit_code == 6
    dry = cli("delete", "Zone", "tradewind.test", "--dry-run", who="viewer/eve")
    assert dry.exit_code == 0


def test_status_tells_of_every_part(cli: Cli) -> None:
    cli.background.apply(*world())
    report_load(cli, singapore=30.0)
    cli.background.node("edge/tokyo")
    replica = cli.background.replica
    cli.background.call(until(lambda: replica.direction.election.leader is not None))
    told = cli.data("status")
    assert set(told) == {
        *("revision", "stale_since_s", "director", "store", "registry", "rollout"),
        *("replicas", "unreachable", "not_asked", "regions", "members", "nodes"),
    }
    assert told["store"]["available"]
    assert told["registry"]["backend"] == "leases"
    assert told["director"]["replica"] == "cp-1"
    regions = {region["region"]: region for region in told["regions"]}
    assert regions["singapore"]["up"]
    assert regions["singapore"]["capacity_tokens_per_s"] == 100
    assert regions["singapore"]["load_tokens_per_s"] == 30
    assert regions["singapore"]["utilisation"] == 0.7
    [node] = told["nodes"]
    assert node["id"] == "edge/tokyo"
    assert node["newest"]
    cli.ok("region", "drain", "singapore", "--to", "30", "--reason", "x", "--no-wait")
    after = {region["region"]: region for region in cli.data("status")["regions"]}
    assert after["singapore"]["override"]["percent"] == 30
    table = cli.ok("status")
    assert "drain 30%" in table
    assert "registry: leases, up since" in table


def test_status_works_with_a_replica_and_the_store_down(cli: Cli) -> None:
    cli.background.apply(*world())
    cli.store.cut("etcd is down")
    endpoints = f"127.0.0.1:1,{cli.background.endpoint}"
    result = cli("status", "--endpoint", endpoints)
    assert result.exit_code == 0, result.output
    assert "AWAY since" in result.stdout
    assert "127.0.0.1:1" in result.stdout
    told = cli("status", "--endpoint", endpoints, "-o", "json")
    data = msgspec.json.decode(told.stdout)
    assert data["stale_since_s"]
    assert not data["store"]["available"]
    assert [each["endpoint"] for each in data["unreachable"]] == ["127.0.0.1:1"]


def test_as_many_changes_are_shown_as_are_asked_for(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few a replica puts into one answer."""
    cli.background.apply(*world())
    for number in range(5):
        cli.background.apply(resource("Tenant", f"t{number}"))
    monkeypatch.setattr(messages, "_HISTORY_BYTES", 1)
    entries = msgspec.json.decode(cli.ok("history", "--limit", "4", "-o", "json"))
    assert [entry["number"] for entry in entries] == [6, 5, 4, 3]
    told = cli.ok("audit", "list", "--limit", "4")
    assert told.splitlines()[-1] == "older ones: --before 3"
    of_kind = msgspec.json.decode(cli.ok("history", "Region", "-o", "json"))
    assert [entry["number"] for entry in of_kind] == [1]


def test_a_deletion_can_be_waited_for(cli: Cli) -> None:
    cli.background.apply(*world())
    cli.background.node("edge/tokyo", lambda _: None)
    told = cli.ok("delete", "Tenant", "globex", "--wait")
    assert "all 1 connected nodes have it" in told


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("region drain fr", ["frankfurt"]),
        ("get Tenant g", ["globex"]),
        ("delete Zone ", ["tradewind.test"]),
        ("explain --edge to", ["tokyo"]),
        ("explain --model s", ["smol"]),
        ("get Nonsense ", []),
    ],
)
def test_names_are_completed(cli: Cli, typed: str, found: list[str]) -> None:
    cli.background.apply(*world())
    assert _completed(typed, cli.background.endpoint, cli.mesh.directory("viewer/eve")) == found


def test_completion_tells_no_errors(mesh: Mesh) -> None:
    """Where no replica answers, and where nobody said which."""
    assert _completed("region drain f", "127.0.0.1:1", mesh.directory("viewer/eve")) == []
    assert _completed("region drain f", "", Path("nowhere")) == []


def _completed(typed: str, endpoint: str, identity: Path) -> list[str]:
    words = f"tradewind {typed}"
    done = subprocess.run(
        [str(Path(sys.executable).parent / "tradewind")],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "_TRADEWIND_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "TRADEWIND_ENDPOINTS": endpoint,
            "TRADEWIND_IDENTITY": str(identity),
        },
        timeout=30,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.split()

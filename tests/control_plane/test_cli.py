"""The command line against a real replica over mutual TLS: what it prints and exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from control_plane.cli.main import app
from control_plane.store.memory import MemoryStore
from runtime.errors import TradewindError
from tests.control_plane.mesh import Background, Mesh, region, world
from topology import resources as res
from topology.api_key import digest
from topology.resources import Resource
from topology.snapshot import Snapshot


class Cli:
    """`tradewind` as an operator calls it."""

    def __init__(self, mesh: Mesh, background: Background, store: MemoryStore) -> None:
        self.mesh = mesh
        self.background = background
        self.store = store

    def __call__(
        self, *arguments: str, who: str = "admin/alice", stdin: str | None = None
    ) -> Result:
        options = ["--endpoint", self.background.endpoint]
        options += ["--identity", str(self.mesh.directory(who))]
        return CliRunner().invoke(app, [*options, *arguments], input=stdin)

    def ok(self, *arguments: str, stdin: str | None = None) -> str:
        result = self(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def data(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "-o", "json"))


@pytest.fixture
def cli(mesh: Mesh) -> Iterator[Cli]:
    store = MemoryStore()
    with Background(mesh, store) as background:
        yield Cli(mesh, background, store)


def yaml_of(*resources: Resource) -> str:
    return yaml.safe_dump_all([res.to_document(r, stored=False) for r in resources])


def test_apply_get_diff_delete(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    (folder / "deeper").mkdir(parents=True)
    (folder / "regions.yaml").write_text(yaml_of(*world()[:2]))
    (folder / "deeper" / "rest.yml").write_text("---\n# nothing\n---\n" + yaml_of(*world()[2:]))
    dry = cli("apply", "-f", str(folder), "--dry-run")
    assert dry.exit_code == 0
    assert "+ Region/singapore" in dry.stdout
    assert 'spec.city: (none) -> "Singapore"' in dry.stdout
    assert cli.data("get") == []
    assert "10 created; revision" in cli.ok("apply", "-f", str(folder), "--reason", "first")
    assert "10 unchanged" in cli.ok("apply", "-f", str(folder))
    got = cli.data("get", "tenant", "eurobank")
    assert (got["author"], got["spec"]["residency"]) == ("admin/alice", ["EU"])
    assert "Region  frankfurt" in cli.ok("get", "regions")
    assert cli("diff", "-f", str(folder)).exit_code == 0
    (folder / "regions.yaml").write_text(yaml_of(region("singapore", capacity_tokens_per_s=7)))
    differs = cli("diff", "-f", str(folder / "regions.yaml"), "-o", "json")
    assert differs.exit_code == 7
    assert json.loads(differs.stdout)["changes"][0]["fields"] == [
        {"path": "spec.capacity_tokens_per_s", "before": 100.0, "after": 7.0}
    ]
    assert "1 deleted" in cli.ok("delete", "Tenant", "globex")
    gone = cli("get", "Tenant", "globex")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert "no Tenant named 'globex'" in gone.stderr


def test_every_mistake_is_told_with_its_line(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "kind: Region\nname: UPPER\nspec:\n  city: X\n  latitude: 91\n---\n"
        "kind: Regoin\nname: a\nspec: {}\n---\n"
        "kind: Tenant\nname: a\nspec:\n  residency: [NO, Norway]\n  residency: [NO]\n"
    )
    result = cli("apply", "-f", str(file))
    assert result.exit_code == 2
    for told in (
        f"{file}:2 (document 1): name: found 'UPPER'",
        f"{file}:5 (document 1): spec.latitude: found 91; allowed: a number >= -90 and <= 90",
        f"{file}:3 (document 1): spec.cores: found nothing; allowed: required",
        f"{file}:7 (document 2): kind: found 'Regoin'; allowed: one of Region",
        f"{file}:15 (document 3): spec.residency: found the same key again",
    ):
        assert told in result.stderr
    assert "Traceback" not in result.output


def test_a_dangling_reference_is_told_with_its_line(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(
        "kind: Model\nname: m\nspec:\n  context_tokens: 5\n  regions:\n    - atlantis\n"
    )
    result = cli("apply", "-f", str(file))
    assert result.exit_code == 2
    assert f"{file}:6 (document 1) (Model/m): spec.regions[0]: found Region 'atlantis'" in (
        result.stderr
    )


def test_stdin_duplicates_and_nothing(cli: Cli) -> None:
    twice = cli("apply", "-f", "-", stdin=yaml_of(region("a")) + "---\n" + yaml_of(region("a")))
    assert twice.exit_code == 2
    assert "Region/a again" in twice.stderr
    assert cli("apply", "-f", "-", stdin="").exit_code == 2
    assert cli("apply", "-f", "/nowhere.yaml").exit_code == 2
    assert cli("apply").exit_code == 2
    assert cli("apply", "-f", "-", stdin="{[}").exit_code == 2
    assert cli.data("get") == []


def test_a_document_with_a_revision_meets_a_conflict(cli: Cli) -> None:
    cli.background.apply(*world())
    held = cli.ok("get", "Tenant", "acme", "-o", "yaml")
    assert cli("apply", "-f", "-", stdin=held.replace("vip", "batch")).exit_code == 0
    late = cli("apply", "-f", "-", stdin=held.replace("vip", "standard"))
    assert late.exit_code == 3
    assert "Tenant/acme is at revision" in late.stderr
    assert "by admin/alice" in late.stderr
    assert cli.data("get", "Tenant", "acme")["spec"]["tier"] == "batch"


def test_prune_spares_other_kinds_and_overrides(cli: Cli) -> None:
    cli.background.apply(*world())
    cli.ok("region", "drain", "singapore", "--reason", "test", "--no-wait")
    kept = yaml_of(*world()[6:8])  # acme and globex
    told = cli("apply", "-f", "-", "--prune", "--dry-run", stdin=kept)
    assert "- Tenant/eurobank" in told.stdout
    assert "1 deleted, 2 unchanged" in cli.ok("apply", "-f", "-", "--prune", stdin=kept)
    assert len(cli.data("get")) == len(world())


def test_drain_and_restore_wait_for_every_node(cli: Cli) -> None:
    cli.background.apply(*world())
    edge = cli.background.node("edge/tokyo")
    core = cli.background.node("core/singapore")
    told = cli.ok("region", "drain", "singapore", "--reason", "kernel", "--to", "30")
    assert "singapore drained (30%); revision" in told
    assert "all 2 connected nodes have it" in told
    for client in (edge, core):
        assert client.snapshot.overrides["singapore"].percent == 30
    [_, row] = cli.data("region", "list")
    assert (row["state"], row["by"], row["reason"]) == ("drained 30%", "admin/alice", "kernel")
    cli.ok("region", "failover", "singapore", "--reason", "worse", "--expires", "2h")
    assert cli.data("region", "list")[1]["state"] == "failed over 100%"
    assert "all 2" in cli.ok("region", "restore", "singapore", "--reason", "done")
    assert not edge.snapshot.overrides
    again = cli("region", "restore", "singapore", "--reason", "done")
    assert again.exit_code == 1
    assert "nothing overrides region singapore" in again.stderr


def test_a_reason_does_not_steer_the_reader_s_terminal(cli: Cli) -> None:
    cli.background.apply(*world())
    cli.ok("region", "drain", "singapore", "--reason", "\x1b]0;owned\x07new\nline", "--no-wait")
    [line] = [line for line in cli.ok("region", "list").splitlines() if "drained" in line]
    assert line.endswith("\ufffd]0;owned\ufffdnew\ufffdline")


def test_a_node_that_refuses_is_named(cli: Cli) -> None:
    def picky(snapshot: Snapshot) -> None:
        if snapshot.overrides:
            raise TradewindError("I do not do overrides")

    cli.background.apply(*world())
    cli.background.node("edge/tokyo", picky)
    result = cli("region", "drain", "singapore", "--reason", "x")
    assert result.exit_code == 8
    assert "edge/tokyo refused revision" in result.stderr
    assert "REFUSED" in cli.ok("status")
    [node] = cli.data("status")["nodes"]
    assert node["nack"]["reason"] == "I do not do overrides"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("drain", "frankfurt", "--reason", "x"), 4, "--force-residency"),
        (("drain", "atlantis", "--reason", "x"), 2, "atlantis"),
        (("drain", "", "--reason", "x"), 2, "empty is not all"),
        (("drain", "*", "--reason", "x"), 2, "empty is not all"),
        (("drain", "singapore", "--reason", " "), 2, "reason"),
        (("drain", "singapore"), 2, "--reason"),
        (("drain", "singapore", "--reason", "x", "--to", "0"), 2, "greater than or equal to 1"),
        (("drain", "singapore", "--reason", "x", "--expires", "soon"), 2, "soon"),
        (("drain", "singapore", "--reason", "x", "--expires", "2020-01-01"), 2, "passed"),
        (("drain", "singapore", "--reason", "x", "--expires", "99999999999h"), 2, "year 10000"),
        (("restore", "", "--reason", "x"), 2, "empty is not all"),
    ],
)
def test_what_drain_refuses(cli: Cli, arguments: tuple[str, ...], code: int, told: str) -> None:
    cli.background.apply(*world())
    result = cli("region", *arguments)
    assert (result.exit_code, told in result.output) == (code, True), result.output
    assert not cli.background.replica.catalog.view.snapshot.overrides


def test_a_safety_rule_can_be_overruled_by_name(cli: Cli) -> None:
    cli.background.apply(*world())
    refused = cli("region", "drain", "frankfurt", "--reason", "x", "--force-last-region")
    assert refused.exit_code == 4
    assert "eurobank" in refused.stderr
    cli.ok("region", "drain", "frankfurt", "--reason", "x", "--force-residency", "--no-wait")
    last = cli("region", "drain", "singapore", "--reason", "x", "--no-wait")
    assert last.exit_code == 4
    assert "--force-last-region" in last.stderr


def test_explain(cli: Cli) -> None:
    cli.background.apply(*world())
    asked = ("explain", "--model", "smol", "--client")
    told = cli.data(*asked, "198.18.4.7", "--tenant", "eurobank")
    assert (told["edge"], told["region"]) == ("london", "frankfurt")
    assert told["place"] == "London, by the table for 198.18.4.7"
    singapore = next(r for r in told["regions"] if r["name"] == "singapore")
    assert singapore["state"] == "not"
    assert "residency: it lies in SG" in singapore["why"]
    assert cli.data(*asked, "35,140", "--tenant", "acme")["region"] == "singapore"
    assert "edge:   tokyo" in cli.ok(*asked, "198.18.1.0/24", "--tenant", "acme")
    assert "is in no table" in cli.ok(*asked, "192.0.2.1", "--tenant", "acme")
    by_edge = cli.data("explain", "--edge", "tokyo", "--tenant", "acme", "--model", "smol")
    assert (by_edge["edge"], by_edge["region"]) == ("tokyo", "singapore")
    for wrong, code in (
        (("--client", "nowhere", "--tenant", "acme"), 2),
        (("--client", "198.18.1.1", "--tenant", "nobody"), 1),
        (("--client", "198.18.1.1", "--tenant", "acme", "--name", "x.example"), 1),
        (("--client", "198.18.1.1", "--edge", "tokyo", "--tenant", "acme"), 2),
    ):
        assert cli("explain", "--model", "smol", *wrong).exit_code == code


def test_without_the_store(cli: Cli) -> None:
    cli.background.apply(*world())
    cli.background.do(lambda: cli.store.cut("etcd is down"))
    result = cli("apply", "-f", "-", stdin=yaml_of(region("dubai", "AE")))
    assert result.exit_code == 5
    assert "the store does not answer" in result.stderr
    assert cli("region", "drain", "singapore", "--reason", "x").exit_code == 5
    told = cli.ok("status")
    assert "AWAY since" in told
    assert "stale since" in told
    assert "etcd is down" in told
    got = cli("get", "Region")
    assert got.exit_code == 0
    assert "the store is away" in got.stderr
    cli.background.do(cli.store.mend)
    assert "1 created" in cli.ok("apply", "-f", "-", stdin=yaml_of(region("dubai", "AE")))


@pytest.mark.parametrize("who", ["edge/tokyo", "core/singapore", "dns/ns1", "control/cp-9"])
@pytest.mark.parametrize(
    "verb",
    [
        ("get",),
        ("status",),
        ("region", "drain", "singapore", "--reason", "x"),
        ("region", "restore", "singapore", "--reason", "x"),
        ("explain", "--edge", "tokyo", "--tenant", "acme", "--model", "smol"),
    ],
)
def test_only_operators_may_ask(cli: Cli, who: str, verb: tuple[str, ...]) -> None:
    result = cli(*verb, who=who)
    assert result.exit_code == 6, result.output
    assert f"{who} may not call " in result.stderr


def test_exit_codes_of_the_process(cli: Cli, tmp_path: Path) -> None:
    cli.background.apply(*world())
    context = tmp_path / "context.yaml"
    files = {
        "endpoints": ["127.0.0.1:1", cli.background.endpoint],  # the first is not there
        "identity": str(cli.mesh.directory("admin/alice")),
    }
    context.write_text(yaml.safe_dump(files))

    def run(*arguments: str, stdin: str = "", **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "control_plane.cli.main", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=os.environ | {"TRADEWIND_CONTEXT": str(context)} | environment,
            timeout=30,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    assert run("get", "Region") == (0, "")
    assert run("get", "Region", "nowhere")[0] == 1
    assert run("apply", "-f", "-", stdin="kind: X")[0] == 2
    assert run("diff", "-f", "-", stdin=yaml_of(region("dubai", "AE")))[0] == 7
    assert run("region", "drain", "frankfurt", "--reason", "x")[0] == 4
    edge = str(cli.mesh.directory("edge/tokyo"))
    assert run("get", TRADEWIND_IDENTITY=edge)[0] == 6
    code, told = run("get", TRADEWIND_ENDPOINTS="127.0.0.1:1")
    assert code == 5
    assert "no answer from 127.0.0.1:1" in told
    assert "is a control-plane replica running there?" in told
    assert run("get", TRADEWIND_CONTEXT=str(tmp_path / "nowhere.yaml"))[0] == 2
    assert run("get", TRADEWIND_ENDPOINTS="not an endpoint")[0] == 2


def test_another_ca(cli: Cli, tmp_path: Path) -> None:
    other = Mesh(tmp_path)
    cli.mesh = other
    result = cli("get")
    assert result.exit_code == 5
    assert "issued by the same CA" in result.stderr


def test_keys(cli: Cli) -> None:
    made = cli.data("tenant", "new-key")
    assert made["hash"] == digest(made["key"])
    assert cli.ok("tenant", "hash-key", stdin=made["key"] + "\n").strip() == made["hash"]
    assert cli("tenant", "hash-key", stdin="two words").exit_code == 2


def test_pki(cli: Cli, tmp_path: Path) -> None:
    ca, out = tmp_path / "ca", tmp_path / "alice"
    cli.ok("pki", "init", str(ca))
    assert cli("pki", "init", str(ca)).exit_code == 1
    issue = ("pki", "issue", "operator/alice", "--ca", str(ca), "--out", str(out))
    cli.ok(*issue, "--host", "192.0.2.1", "--host", "a.example")
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
    assert cli(*issue).exit_code == 1
    cli.ok(*issue, "--force")
    for wrong in ("pilot/bob", "operator/", "operator/a/b", "alice"):
        result = cli("pki", "issue", wrong, "--ca", str(ca), "--out", str(tmp_path / "x"))
        assert result.exit_code == 1, wrong

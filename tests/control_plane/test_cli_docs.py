"""The command line's help and its page in docs/ say what is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from control_plane.cli import exits, main
from control_plane.cli.context import Given, WrongContext, resolve
from control_plane.cli.main import app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
GIVEN = Given()
VERBS = [
    ["apply"],
    ["diff"],
    ["delete"],
    ["get"],
    ["status"],
    ["explain"],
    ["paths"],
    ["ladder"],
    ["history"],
    ["rollback"],
    *(["audit", verb] for verb in ("list", "verify")),
    *(["region", verb] for verb in ("drain", "failover", "restore", "list")),
    *(["rollout", verb] for verb in ("status", "pause", "resume", "promote", "abort")),
    *(["tenant", verb] for verb in ("new-key", "hash-key")),
    *(["pki", verb] for verb in ("init", "issue", "rotate")),
    ["control-plane", "run"],
    ["dns", "run"],
]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_an_example_and_is_documented(verb: list[str]) -> None:
    told = run(*verb, "--help")
    assert "Example" in told
    assert f"tradewind {' '.join(verb)}" in told
    assert all(word in PAGE for word in verb)


def test_every_exit_code_is_documented() -> None:
    told = " ".join(run("--help").split())
    for code, meaning in exits.MEANINGS.items():
        assert f"| {code} | {meaning} |" in PAGE
        assert f"{code} {meaning}" in told


def test_help_loads_no_verb_and_no_grpc() -> None:
    code = (
        "import sys\nfrom control_plane.cli.main import main\n"
        "sys.argv = ['tradewind', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    heavy = ("grpc", "envoy", "torch", "lab.cli", "edge_node.cli", "control_plane.cli.apply")
    assert not [module for module in heavy if module in loaded]
    assert "Drain, fail over and restore regions." in done.stdout


def test_a_broken_plugin_breaks_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rotten_plugin.py").write_text('"""Does rot."""\nraise RuntimeError("rotten")\n')
    info = tmp_path / "rotten-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rotten\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tradewind.commands]\nrotten = rotten_plugin:app\nmissing = nowhere.at.all:app\n"
        "get = rotten_plugin:app\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    told = run("--help")
    assert "Does rot." in told
    assert "missing" in told
    assert "(cannot be loaded" in told
    for name in ("rotten", "missing"):
        result = CliRunner().invoke(app, [name])
        assert result.exit_code == 1
        assert f"the plugin {name!r}" in result.stderr
    assert "Show resources" in run("get", "--help")


def test_completion() -> None:
    environment = os.environ | {
        "_TRADEWIND_COMPLETE": "complete_bash",
        "COMP_WORDS": "tradewind re",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [str(Path(sys.executable).parent / "tradewind")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.split() == ["region"]


def test_a_mistyped_verb() -> None:
    result = CliRunner().invoke(app, ["statsu"])
    assert result.exit_code == 2
    assert "Did you mean 'status'?" in result.stderr


def test_where_the_context_comes_from(tmp_path: Path) -> None:
    lab, home = tmp_path / "here" / ".lab", tmp_path / "home" / ".config" / "tradewind"
    for folder, port in ((lab, 1), (home, 2)):
        folder.mkdir(parents=True)
        (folder / "context.yaml").write_text(f"endpoints: ['a:{port}']\nidentity: me\n")

    def found(given: Given = GIVEN, **env: str) -> tuple[tuple[str, ...], Path]:
        context = resolve(given, env, tmp_path / "here", tmp_path / "home")
        return context.endpoints, context.identity

    assert found() == (("a:1",), lab / "me")
    (lab / "context.yaml").unlink()
    assert found() == (("a:2",), home / "me")
    assert found(TRADEWIND_ENDPOINTS="b:1, b:2") == (("b:1", "b:2"), home / "me")
    given = Given("c:1", Path("you"))
    assert found(given, TRADEWIND_ENDPOINTS="b:1", TRADEWIND_IDENTITY="x") == (
        ("c:1",),
        Path("you"),
    )
    (home / "context.yaml").write_text("endpoints: 5\n")
    with pytest.raises(Exception, match="endpoints"):
        found()
    (home / "context.yaml").unlink()
    with pytest.raises(WrongContext, match="no control plane"):
        found()
    with pytest.raises(WrongContext, match="no identity"):
        found(Given("c:1"))


def test_our_verbs_are_all_there() -> None:
    assert {verb[0] for verb in VERBS} == set(main._VERBS)

"""The structure is a test: names, layers, sizes, and what must not be loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "topology", "control_plane", "edge_node", "region_core", "lab")
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "gen" not in path.relative_to(ROOT).parts:
                yield path


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_every_file_is_named_after_its_concept() -> None:
    bad = [p for p in sources() if BANNED_NAMES & set(p.relative_to(ROOT).with_suffix("").parts)]
    assert bad == []


def test_nine_files_in_ten_are_under_400_lines() -> None:
    lengths = [len(p.read_text(encoding="utf-8").splitlines()) for p in sources()]
    assert sum(length <= 400 for length in lengths) >= 0.9 * len(lengths)


def test_nine_functions_in_ten_are_under_40_lines() -> None:
    lengths = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in sources()
        for node in functions(path)
    ]
    assert sum(length <= 40 for length in lengths) >= 0.9 * len(lengths)


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(p.relative_to(ROOT))
        for p in sources()
        if p.read_text(encoding="utf-8").strip()
        and ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) is None
    ]
    assert silent == []


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "banned", "because"),
    [
        ("import region_core.scheduling.batcher", "torch", "the scheduler knows no tensor"),
        ("import control_plane.cli.main", "torch", "the command line must start at once"),
        ("import control_plane.cli.main", "edge_node", "the services meet on the wire alone"),
        ("import edge_node.front.app", "torch", "an edge worker stays under 150 MB"),
        ("import edge_node.front.app", "region_core", "the services meet on the wire alone"),
        ("import edge_node.front.app", "transformers", "an edge worker stays under 150 MB"),
        ("import topology.overlay.frames", "aioquic", "the codec is sans-I/O"),
        ("import topology.overlay.session", "asyncio", "the state machines are sans-I/O"),
        ("import topology.routing", "grpc", "decisions touch no network"),
    ],
)
def test_what_must_not_be_loaded(statement: str, banned: str, because: str) -> None:
    assert banned not in loaded_by(statement), because

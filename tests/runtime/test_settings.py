"""Settings: file, environment, every mistake at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from runtime import settings
from runtime.validation import InvalidDocument


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wait_ms: int = 10


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    inner: Inner = Inner()
    ports: tuple[int, ...] = ()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_file_and_environment(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", "name: a\ninner: {wait_ms: 3}\n")
    environment = {"TRADEWIND_SET_INNER__WAIT_MS": "4", "TRADEWIND_SET_PORTS": "[1, 2]"}
    assert settings.load(Outer, path, environment) == Outer("a", Inner(4), (1, 2))


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("name: 5\ninner: {wait_ms: x, y: 1}\n", {"name", "inner.wait_ms", "inner.y"}),
        ("- a\n", {""}),
        ("name: [\n", {""}),
        ("", {"name"}),
    ],
)
def test_mistakes(tmp_path: Path, text: str, paths: set[str]) -> None:
    with pytest.raises(InvalidDocument) as caught:
        settings.load(Outer, write(tmp_path / "s.yaml", text), {})
    assert {problem.path for problem in caught.value.problems} == paths


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="No such file"):
        settings.load(Outer, tmp_path / "none.yaml", {})


def test_the_environment_is_checked_too() -> None:
    with pytest.raises(InvalidDocument):
        settings.load(Outer, None, {"TRADEWIND_SET_NAME": "[1]"})

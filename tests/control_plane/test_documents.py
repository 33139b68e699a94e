"""Reading YAML: what people write, and what nobody should."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.changes import documents
from control_plane.changes.documents import read, read_paths
from control_plane.changes.validate import validate
from runtime.validation import InvalidDocument


def one(text: str) -> object:
    found, problems = read(text, "f")
    assert problems == []
    [document] = found
    return document.raw


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"),
        ("yes", "yes"),
        ("true", True),
        ("12:30", "12:30"),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("+7", 7),
        ("2026-01-01", "2026-01-01"),
        ("'5'", "5"),
        ("~", None),
        ("", None),
        ("!!str 5", "5"),
        ("1_000", "1_000"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert one(f"a: {text}\n") == {"a": value}
    assert type(one(f"a: {text}\n")["a"]) is type(value)


def test_anchors_work() -> None:
    assert one("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}


def test_every_value_knows_its_line() -> None:
    [first, second], _ = read("# c\na:\n  - b: 1\n    c: 2\n---\nd: 3\n", "f")
    assert first.place("a[0].c") == "f:4 (document 1)"
    assert first.place("a[0].missing.deeper[3]") == "f:3 (document 1)"
    assert second.place("d") == "f:6 (document 2)"
    assert second.place("") == "f:6 (document 2)"


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: }", "f:2"),
        ("a: 1\na: 2\n", "the same key again"),
        ("? [a]\n: 1\n", "a key that is not text"),
        ("a: !!python/name:os.system\n", "python/name"),
        ("a: !!binary aGk=\n", "binary"),
        ("a: !!int x\n", "a value of type int"),
        ("a: " + "9" * 5000, "a value of type int"),
        ("a: &x [*x]\n", "deeper nesting"),
        ("a: &x [*x, *x]\n", "nesting"),
        (BOMB, "aliases counted"),
        ("[" * 5000, "YAML"),
        ("a: \x00", "YAML"),
        ("a: *nowhere\n", "undefined alias"),
        ("\t- a", "YAML"),
    ],
)
def test_what_is_wrong_is_told_at_bounded_cost(
    text: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_VALUES", 10_000)
    found, problems = read(text, "f")
    assert found == []
    assert 1 <= len(problems) <= 3
    assert told in str(problems[0])


@given(st.text(alphabet="ab:-[]{}&*!#'\"\n |>?,%@0", max_size=60))
def test_no_text_gets_out_as_anything_but_a_problem(text: str) -> None:
    found, problems = read(text, "f")
    try:
        validate(found, problems)
    except InvalidDocument as error:
        assert error.problems


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("b: 1\n")
    (tmp_path / "a.yml").write_text("a: 1\n---\nc: 1\n")
    (tmp_path / "c.json").write_text('{\t"j": 1}')
    (tmp_path / "notes.txt").write_text("no: yes\n")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    paths = [str(tmp_path), str(empty), "-", str(tmp_path / "nowhere")]
    found, problems = read_paths(paths, io.StringIO("s: 1\n"))
    assert [document.raw for document in found] == [
        {"a": 1},
        {"c": 1},
        {"b": 1},
        {"j": 1},
        {"s": 1},
    ]
    assert [problem.source.rpartition("/")[2] for problem in problems] == [
        "latin.yaml",
        "empty",
        "nowhere",
    ]


def test_a_file_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 10)
    (tmp_path / "a.yaml").write_text("a: 1 # and more\n")
    for path in (str(tmp_path / "a.yaml"), "-"):
        found, [problem] = read_paths([path], io.StringIO("a: 1 # and more\n"))
        assert found == []
        assert "at most 10 bytes" in problem.allowed

"""Read YAML files into documents that remember which line each value came from.

YAML 1.2's core schema, not 1.1: `NO` is Norway and not false, `12:30` is text and not 750, and a
key given twice is a mistake. What a file may cost is bounded, aliases included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml
from msgspec import Struct
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from runtime.validation import Problem

MAX_BYTES = 16 * 2**20
MAX_VALUES = 1_000_000  # in one document, aliases counted each time they are used
MAX_DEPTH = 50
STDIN = "-"

_SUFFIXES = (".yaml", ".yml", ".json")


class Document(Struct, frozen=True):
    """One YAML document: plain values, and where in `source` they stand."""

    source: str
    index: int  # from 1, within the source
    raw: Any
    lines: dict[str, int]  # path inside the document, e.g. `spec.regions[2]` -> line, from 1

    def place(self, path: str) -> str:
        """`file:line (document n)` of the value at `path`, or of the nearest one around it."""
        while path and path not in self.lines:
            path = re.sub(r"(\[\d+\]|\.?[^.\[\]]+)$", "", path)
        return f"{self.source}:{self.lines.get(path, 1)} (document {self.index})"


class _Schema(yaml.SafeLoader):
    """A loader for YAML 1.2's core schema."""


_Schema.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Schema.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    return sign * int(digits if base == 10 else digits[2:], base)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:str": str,
    "tag:yaml.org,2002:null": lambda _: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": _integer,
    "tag:yaml.org,2002:float": _number,
}


def read_paths(paths: Sequence[str], stdin: TextIO) -> tuple[list[Document], list[Problem]]:
    """Every document in files, folders (`*.yaml`, `*.yml`, `*.json`, by name) and `-` (stdin)."""
    documents: list[Document] = []
    problems: list[Problem] = []
    for path in paths:
        for source, text in _texts(path, stdin, problems):
            found, wrong = read(text, source)
            documents += found
            problems += wrong
    return documents, problems


def read(text: str, source: str) -> tuple[list[Document], list[Problem]]:
    """Every document in a text. After a syntax error the rest of the text is not read."""
    documents: list[Document] = []
    problems: list[Problem] = []
    index = 0
    try:
        loader = _Schema(text)
        while loader.check_node():
            index += 1
            node = loader.get_node()
            if node is None or _is_empty(node):
                continue
            document = _document(node, source, index, problems)
            if document is not None:
                documents.append(document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        found = " ".join(filter(None, (error.context, error.problem)))
        problems.append(Problem(where, "", found, "well-formed YAML"))
    except (yaml.YAMLError, RecursionError) as error:
        found = " ".join(str(error).split())[:200]
        problems.append(Problem(source, "", found, "well-formed YAML"))
    return documents, problems


def _texts(path: str, stdin: TextIO, problems: list[Problem]) -> Iterable[tuple[str, str]]:
    if path == STDIN:
        text = stdin.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            problems.append(Problem("stdin", "", "more", f"at most {MAX_BYTES} bytes"))
            return
        yield "stdin", text
        return
    for file in _files(Path(path), problems):
        try:
            size = file.stat().st_size
            if size > MAX_BYTES:
                allowed = f"at most {MAX_BYTES} bytes"
                problems.append(Problem(str(file), "", f"{size} bytes", allowed))
                continue
            text = file.read_text(encoding="utf-8")
            # YAML takes no tabs between tokens; JSON does, and has none inside its strings.
            yield str(file), text.replace("\t", " ") if file.suffix == ".json" else text
        except OSError as error:
            problems.append(Problem(str(file), "", str(error.strerror), "a readable file"))
        except UnicodeDecodeError as error:
            problems.append(Problem(str(file), "", f"{error}", "text in UTF-8"))


def _files(path: Path, problems: list[Problem]) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    if not found:
        allowed = "a folder with " + ", ".join(f"*{suffix}" for suffix in _SUFFIXES)
        problems.append(Problem(str(path), "", "no such file in it", allowed))
    return found


def _is_empty(node: Node) -> bool:
    """Between two `---` there may be nothing, or only comments."""
    return isinstance(node, ScalarNode) and node.tag.endswith(":null")


def _document(node: Node, source: str, index: int, problems: list[Problem]) -> Document | None:
    walk = _Walk(source, index)
    raw = walk.value(node, "", 0)
    problems += walk.problems
    return None if walk.problems else Document(source, index, raw, walk.lines)


class _Walk:
    """Builds plain values from a node tree, counting every value that an alias repeats."""

    def __init__(self, source: str, index: int) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._source = source
        self._index = index
        self._values = 0

    def value(self, node: Node, path: str, depth: int) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._values += 1
        if self._values > MAX_VALUES:
            self._over(line, "", "more values", f"at most {MAX_VALUES}, aliases counted")
            return None
        if depth > MAX_DEPTH:
            self._over(line, "", "deeper nesting", f"at most {MAX_DEPTH} levels")
            return None
        match node:
            case MappingNode():
                return self._mapping(node, path, depth)
            case SequenceNode():
                return [
                    self.value(child, f"{path}[{i}]", depth + 1)
                    for i, child in enumerate(node.value)
                    if self._values <= MAX_VALUES
                ]
            case _:
                return self._scalar(node, path, line)

    def _mapping(self, node: MappingNode, path: str, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, child in node.value:
            if self._values > MAX_VALUES:
                break
            name, line = key.value, key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                self._wrong(line, path, "a key that is not text", "a field name")
                continue
            at = f"{path}.{name}" if path else name
            if name in out:
                self._wrong(line, at, "the same key again", "each key once")
                continue
            self.lines[at] = line
            out[name] = self.value(child, at, depth + 1)
        return out

    def _scalar(self, node: Node, path: str, line: int) -> Any:
        build = _SCALARS.get(node.tag)
        if build is None:
            self._wrong(line, path, node.tag, "text, a number, true, false or null")
            return None
        try:
            return build(node.value)
        except ValueError:
            found = node.value if len(node.value) <= 40 else node.value[:39] + "…"
            self._wrong(line, path, repr(found), f"a value of type {node.tag.rpartition(':')[2]}")
            return None

    def _over(self, line: int, path: str, found: str, allowed: str) -> None:
        if not any(problem.found == found for problem in self.problems):
            self._wrong(line, path, found, allowed)

    def _wrong(self, line: int, path: str, found: str, allowed: str) -> None:
        where = f"{self._source}:{line} (document {self._index})"
        self.problems.append(Problem(where, path, found, allowed))

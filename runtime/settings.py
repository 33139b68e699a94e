"""Read a process's settings: one frozen structure, checked once, every mistake at once.

A value comes from the settings file (YAML), and the environment may override a single one:
`TRADEWIND_SET_OVERLAY__IDLE_TIMEOUT_MS=5000` sets `overlay.idle_timeout_ms`. Values from the
environment are read as YAML, so that numbers and lists stay what they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from runtime.validation import InvalidDocument, Problem, convert

T = TypeVar("T")

PREFIX = "TRADEWIND_SET_"


def load(cls: type[T], path: Path | None, environment: Mapping[str, str] | None = None) -> T:
    """Settings of type `cls` from `path` and the environment, or `InvalidDocument`."""
    raw = _read(path) if path else {}
    source = str(path) if path else "defaults"
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(PREFIX):
            _put(raw, name[len(PREFIX) :].lower().split("__"), _parse(value, f"${name}"))
    return convert(raw, cls, source)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDocument([Problem(str(path), "", str(error), "a readable file")]) from error
    raw = _parse(text, str(path))
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InvalidDocument([Problem(str(path), "", type(raw).__name__, "a mapping")])
    return raw


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        found = " ".join(str(error).split())
        raise InvalidDocument([Problem(source, "", found, "well-formed YAML")]) from error


def _put(raw: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        child = raw.setdefault(name, {})
        if not isinstance(child, dict):
            child = raw[name] = {}
        raw = child
    raw[last] = value

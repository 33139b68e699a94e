"""What differs between two versions of a resource, field by field."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from topology.resources import Resource

_ABSENT = object()


class FieldChange(Struct, frozen=True):
    """One field's value before and after, as JSON; empty where it was not there."""

    path: str
    before: str
    after: str


def field_changes(before: Resource | None, after: Resource | None) -> tuple[FieldChange, ...]:
    """Every field of the spec that differs, in the order of the spec."""
    out: list[FieldChange] = []
    _compare(_plain(before), _plain(after), "spec", out)
    return tuple(out)


def _plain(resource: Resource | None) -> Any:
    return _ABSENT if resource is None else msgspec.to_builtins(resource.spec)


def _compare(before: Any, after: Any, path: str, out: list[FieldChange]) -> None:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            _compare(before.get(name, _ABSENT), after.get(name, _ABSENT), f"{path}.{name}", out)
        return
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        if len(before) == len(after):
            for index, (old, new) in enumerate(zip(before, after, strict=True)):
                _compare(old, new, f"{path}[{index}]", out)
            return
    elif isinstance(after, dict) and before is _ABSENT:
        for name, value in after.items():
            _compare(_ABSENT, value, f"{path}.{name}", out)
        return
    out.append(FieldChange(path, _json(before), _json(after)))


def _json(value: Any) -> str:
    return "" if value is _ABSENT else msgspec.json.encode(value).decode()

"""Turn a raw document into a frozen structure, reporting every mistake at once.

msgspec stops at the first mistake. An operator who fixes a file wants all of them, each with
the file, the path inside the document, what was found and what is allowed. So the document is
walked beside the type's description (`msgspec.inspect`), mistakes are collected, and only a
clean document is converted.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect as types

from runtime.errors import TradewindError

T = TypeVar("T")

_FOUND_CHARACTERS = 60
# Whole numbers beyond 64 bits are mistakes, whatever they count: no float holds the largest ones,
# and neither etcd's readers nor protobuf's have to take them.
_LARGEST = 2**63 - 1


class Problem(msgspec.Struct, frozen=True):
    """One mistake in one document."""

    source: str  # the file, or whatever the document came from
    path: str  # where inside the document, e.g. `spec.regions[2]`
    found: str
    allowed: str

    def __str__(self) -> str:
        where = f"{self.source}: {self.path}" if self.path else self.source
        return f"{where}: found {self.found}; allowed: {self.allowed}"


class InvalidDocument(TradewindError):
    """One or more documents are wrong; `problems` lists every mistake."""

    def __init__(self, problems: list[Problem] | tuple[Problem, ...]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{count} mistake{'s' if count != 1 else ''}:\n{lines}")


def convert(raw: object, cls: type[T], source: str, path: str = "") -> T:
    """Build `cls` from `raw` (as YAML or JSON gives it), or raise `InvalidDocument`."""
    problems = check(raw, cls, source, path)
    if problems:
        raise InvalidDocument(problems)
    try:
        return msgspec.convert(raw, cls, dec_hook=_custom)
    except (msgspec.ValidationError, ValueError) as error:
        # A constraint the walk does not know about: still a clear answer, just one at a time.
        raise InvalidDocument([Problem(source, path, describe(raw), str(error))]) from error


def _custom(cls: type[Any], raw: object) -> object:
    """Types that settings use and msgspec does not know: paths, for now."""
    if cls is Path:
        return Path(str(raw))
    raise NotImplementedError(f"no way to read a {cls.__name__} from a document")


def check(raw: object, cls: Any, source: str, path: str = "") -> list[Problem]:
    """Every mistake in `raw` when read as `cls`; empty when there is none."""
    problems: list[Problem] = []
    _walk(raw, _describe_type(cls), source, path, problems)
    return problems


def describe(value: object) -> str:
    """A short, safe rendering of a value for an error message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "a number far too large" if value > 0 else "a number far too small"
    text = repr(value)
    return text if len(text) <= _FOUND_CHARACTERS else text[: _FOUND_CHARACTERS - 1] + "…"


@functools.cache
def _describe_type(cls: Any) -> types.Type:
    return types.type_info(cls)


def _walk(raw: object, kind: types.Type, source: str, path: str, out: list[Problem]) -> None:
    declared = kind
    while isinstance(kind, types.Metadata):
        kind = kind.type
    match kind:
        case types.AnyType() | types.RawType():
            return
        case types.UnionType():
            _walk_union(raw, kind, source, path, out)
        case types.StructType():
            _walk_struct(raw, kind, source, path, out)
        case types.VarTupleType() | types.ListType() | types.FrozenSetType() | types.SetType():
            _walk_list(raw, kind, source, path, out)
        case types.DictType():
            _walk_dict(raw, kind, source, path, out)
        case _:
            if not _scalar_fits(raw, kind):
                out.append(Problem(source, path, describe(raw), say(declared)))


def _walk_struct(
    raw: object, kind: types.StructType, source: str, path: str, out: list[Problem]
) -> None:
    names = {field.encode_name: field for field in kind.fields}
    if not isinstance(raw, dict):
        out.append(Problem(source, path, describe(raw), f"a mapping with {_join(names)}"))
        return
    for key in raw:
        if key not in names:
            out.append(Problem(source, _at(path, str(key)), "an unknown field", _join(names)))
    for name, field in names.items():
        if name in raw:
            _walk(raw[name], field.type, source, _at(path, name), out)
        elif field.required:
            out.append(Problem(source, _at(path, name), "nothing", f"required: {say(field.type)}"))


def _walk_list(
    raw: object,
    kind: types.VarTupleType | types.ListType | types.FrozenSetType | types.SetType,
    source: str,
    path: str,
    out: list[Problem],
) -> None:
    if not isinstance(raw, (list, tuple)):
        out.append(Problem(source, path, describe(raw), say(kind)))
        return
    least = kind.min_length
    if least is not None and len(raw) < least:
        out.append(Problem(source, path, describe(raw), f"at least {least}: {say(kind)}"))
    if kind.max_length is not None and len(raw) > kind.max_length:
        out.append(Problem(source, path, describe(raw), f"at most {kind.max_length} entries"))
    for index, item in enumerate(raw):
        _walk(item, kind.item_type, source, f"{path}[{index}]", out)


def _walk_dict(
    raw: object, kind: types.DictType, source: str, path: str, out: list[Problem]
) -> None:
    if not isinstance(raw, dict):
        out.append(Problem(source, path, describe(raw), say(kind)))
        return
    for key, value in raw.items():
        _walk(key, kind.key_type, source, _at(path, str(key)), out)
        _walk(value, kind.value_type, source, _at(path, str(key)), out)


def _walk_union(
    raw: object, kind: types.UnionType, source: str, path: str, out: list[Problem]
) -> None:
    best: list[Problem] | None = None
    for choice in kind.types:
        attempt: list[Problem] = []
        _walk(raw, choice, source, path, attempt)
        if not attempt:
            return
        deeper = any(problem.path != path for problem in attempt)
        if best is None or deeper:
            best = attempt
    if best and any(problem.path != path for problem in best):
        out.extend(best)
    else:
        out.append(Problem(source, path, describe(raw), say(kind)))


def _scalar_fits(raw: object, kind: types.Type) -> bool:
    good = True  # a type this walk does not know is left to msgspec
    match kind:
        case types.NoneType():
            good = raw is None
        case types.BoolType():
            good = isinstance(raw, bool)
        case types.IntType():
            good = isinstance(raw, int) and _is_number(raw) and _in_range(raw, kind)
        case types.FloatType():
            good = _is_number(raw) and _in_range(raw, kind)  # type: ignore[arg-type]
        case types.StrType():
            good = isinstance(raw, str) and _string_fits(raw, kind)
        case types.LiteralType():
            good = isinstance(raw, (str, int)) and raw in kind.values
        case types.CustomType() if kind.cls is Path:
            good = isinstance(raw, (str, Path))
        case types.EnumType():
            good = raw in [member.value for member in kind.cls]
        case _:
            pass
    return good


def _is_number(raw: object) -> bool:
    if isinstance(raw, float):
        return math.isfinite(raw)
    return isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) <= _LARGEST


def _in_range(raw: float, kind: types.IntType | types.FloatType) -> bool:
    return (
        (kind.gt is None or raw > kind.gt)
        and (kind.ge is None or raw >= kind.ge)
        and (kind.lt is None or raw < kind.lt)
        and (kind.le is None or raw <= kind.le)
    )


def _string_fits(raw: str, kind: types.StrType) -> bool:
    return (
        (kind.min_length is None or len(raw) >= kind.min_length)
        and (kind.max_length is None or len(raw) <= kind.max_length)
        and (kind.pattern is None or re.search(kind.pattern, raw) is not None)
    )


def say(kind: types.Type) -> str:
    """What a type allows, in words."""
    description = ""
    while isinstance(kind, types.Metadata):
        description = (kind.extra_json_schema or {}).get("description", description)
        kind = kind.type
    if description:
        return str(description)
    match kind:
        case types.UnionType():
            return " or ".join(say(choice) for choice in kind.types)
        case types.StructType():
            return f"a mapping with {_join(field.encode_name for field in kind.fields)}"
        case types.VarTupleType() | types.ListType() | types.FrozenSetType() | types.SetType():
            return f"a list of {say(kind.item_type)}"
        case types.DictType():
            return f"a mapping to {say(kind.value_type)}"
        case types.LiteralType():
            return "one of " + ", ".join(repr(value) for value in kind.values)
        case types.EnumType():
            return "one of " + ", ".join(repr(member.value) for member in kind.cls)
        case types.StrType():
            return "text" + (f" matching {kind.pattern}" if kind.pattern else "")
        case types.IntType():
            return "a whole number" + _range(kind)
        case types.FloatType():
            return "a number" + _range(kind)
        case types.BoolType():
            return "true or false"
        case types.NoneType():
            return "nothing"
        case types.CustomType() if kind.cls is Path:
            return "a path"
        case _:
            return type(kind).__name__


def _range(kind: types.IntType | types.FloatType) -> str:
    bounds = []
    for sign, bound in ((">", kind.gt), (">=", kind.ge), ("<", kind.lt), ("<=", kind.le)):
        if bound is not None:
            bounds.append(f"{sign} {bound:g}")
    return " " + " and ".join(bounds) if bounds else ""


def _join(names: Any) -> str:
    return ", ".join(sorted(names))


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

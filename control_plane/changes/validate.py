"""Documents to resources: every mistake in every document at once, each with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from control_plane.changes.documents import Document
from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import Key, Resource


class Validated(Struct, frozen=True):
    """Resources in the order they were given, and which document each came from."""

    resources: tuple[Resource, ...]
    origins: Mapping[Key, Document]


def validate(documents: Sequence[Document], known: Iterable[Problem] = ()) -> Validated:
    """Resources from documents, or `InvalidDocument` with all mistakes.

    `known` are mistakes found while reading, reported along with the others.
    """
    problems = list(known)
    resources: list[Resource] = []
    origins: dict[Key, Document] = {}
    for document in documents:
        try:
            resource = res.parse(document.raw, document.source)
        except InvalidDocument as error:
            problems += [_placed(problem, document) for problem in error.problems]
            continue
        earlier = origins.setdefault(resource.key, document)
        if earlier is not document:
            problems.append(
                Problem(
                    document.place("name"),
                    "name",
                    f"{resource.key} again",
                    f"each resource once; the other is at {earlier.place('name')}",
                )
            )
            continue
        resources.append(resource)
    if problems:
        raise InvalidDocument(problems)
    return Validated(tuple(resources), origins)


def locate(problems: Iterable[Problem], origins: Mapping[Key, Document]) -> list[Problem]:
    """Problems that name a resource (`Region/singapore`), with the file and line it came from."""
    out = []
    for problem in problems:
        document = origins.get(Key.parse(problem.source))
        if document is None:
            out.append(problem)
            continue
        place = f"{document.place(problem.path)} ({problem.source})"
        out.append(msgspec.structs.replace(problem, source=place))
    return out


def _placed(problem: Problem, document: Document) -> Problem:
    return msgspec.structs.replace(problem, source=document.place(problem.path))

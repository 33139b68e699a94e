"""From files to a request, and from a server's complaint back to a line in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from control_plane.admin.errors import INVALID, AdminError
from control_plane.changes.documents import Document, read_paths
from control_plane.changes.validate import Validated, locate, validate
from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import Key
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import resource_pb2


def read_files(paths: Sequence[str]) -> Validated:
    """Everything in the files, checked; raises `InvalidDocument` with every mistake."""
    documents, problems = read_paths(paths, sys.stdin)
    found = validate(documents, problems)
    if not found.resources:
        raise InvalidDocument([Problem(", ".join(paths), "", "no document", "at least one")])
    return found


def request_of(found: Validated) -> pb.ApplyRequest:
    return pb.ApplyRequest(
        puts=[
            resource_pb2.Resource(kind=r.kind, name=r.name, json=res.encode(r))
            for r in found.resources
        ]
    )


@contextmanager
def located(origins: Mapping[Key, Document]) -> Iterator[None]:
    """Errors about a resource also name the file and line that it came from."""
    try:
        yield
    except AdminError as error:
        if error.code == INVALID and error.problems:
            error.problems = tuple(locate(error.problems, origins))
        raise

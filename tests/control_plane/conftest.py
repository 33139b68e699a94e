"""Fixtures of the control plane's tests."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from runtime import logs
from tests.control_plane.mesh import Mesh


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(autouse=True, scope="session")
def quiet_logs() -> Iterator[io.StringIO]:
    """The command line's own output is looked at; the replica beside it must not mix with it.

    What is logged can be read here.
    """
    written = io.StringIO()
    logs.configure("test", "info", written)
    yield written

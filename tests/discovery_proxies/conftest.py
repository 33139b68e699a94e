"""A mesh of certificates for tests over real sockets."""

from __future__ import annotations

import pytest

from tests.control_plane.mesh import Mesh


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))

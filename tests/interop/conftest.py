"""A mesh of certificates for tests with foreign programs."""

from __future__ import annotations

import pytest

from tests.control_plane.mesh import Mesh


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))

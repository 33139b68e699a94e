"""Engines to test with: simulated, a tiny random model, and the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from region_core.engine.base import Engine, Limits
from region_core.engine.sim import SimEngine, SimSettings
from region_core.weights.bundle import Bundle, open_bundle
from tests.region_core import tiny

LIMITS = Limits(slots=4, context_tokens=512)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(tiny_source, None, tmp_path_factory.mktemp("cache"), "bfloat16")


@pytest.fixture(scope="session")
def real_bundle() -> Bundle:
    return open_bundle(None, None, None, "bfloat16")


def sim_engine(**settings: float) -> SimEngine:
    fast = {"prefill_tokens_per_s": 1e6, "step_ms": 0.1, "step_ms_per_sequence": 0.0}
    return SimEngine(SimSettings(**(fast | settings)), LIMITS, "sim-model")  # type: ignore[arg-type]


def torch_engine(bundle: Bundle, limits: Limits = LIMITS) -> Engine:
    from region_core.engine.torch import TorchEngine

    return TorchEngine(bundle, limits, "cpu", threads=1)


@pytest.fixture(params=["sim", "tiny", pytest.param("real", marks=pytest.mark.model)])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Every engine there is."""
    if request.param == "sim":
        return sim_engine()
    return torch_engine(request.getfixturevalue(f"{request.param}_bundle"))

"""Engines to test with: simulated, a tiny random model, and the real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from region_core.engine.process import ENVIRONMENT

os.environ.update(ENVIRONMENT | os.environ)  # as in an engine's process; before torch is in

from region_core.engine.base import Engine, Limits
from region_core.engine.channel import Setup
from region_core.engine.process import ProcessEngine
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


def setup_of(source: Path, cache: Path, limits: Limits = LIMITS) -> Setup:
    return Setup(
        str(source), None, str(cache), "bfloat16", limits, "cpu", 1, True, "engine", "warning"
    )


@pytest.fixture(scope="session")
def worker(tiny_source: Path, tiny_bundle: Bundle) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(setup_of(tiny_source, tiny_bundle.folder.parent))
    yield engine
    engine.close()


@pytest.fixture(params=["sim", "tiny", "process", pytest.param("real", marks=pytest.mark.model)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Every engine there is."""
    if request.param == "sim":
        yield sim_engine()
    elif request.param == "process":
        yield _Kept(request.getfixturevalue("worker"))
    else:
        yield torch_engine(request.getfixturevalue(f"{request.param}_bundle"))


class _Kept:
    """An engine that outlives the services it is lent to: `close` leaves it running."""

    def __init__(self, engine: ProcessEngine) -> None:
        self._engine = engine
        self.limits, self.description = engine.limits, engine.description
        self.tokenizer = engine.tokenizer
        self.begin, self.step, self.release = engine.begin, engine.step, engine.release

    def close(self) -> None:
        for slot in range(self.limits.slots):
            self._engine.release(slot)

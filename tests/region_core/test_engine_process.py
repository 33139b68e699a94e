"""The engine's process: dying, hanging, failing to start, and outliving nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from region_core.engine import process
from region_core.engine.base import Begin
from region_core.engine.process import ProcessEngine
from region_core.errors import EngineFault, EngineNotStarted
from region_core.scheduling.plan import Chunk, Step
from region_core.weights.bundle import Bundle
from tests.region_core.conftest import setup_of
from tests.region_core.driving import GREEDY, alone
from tests.region_core.world import World

PROMPT = (5, 6, 7, 8)


@pytest.fixture
def engine(tiny_source: Path, tiny_bundle: Bundle) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(setup_of(tiny_source, tiny_bundle.folder.parent))
    yield engine
    engine.close()


def gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_killed_worker_fails_one_step_and_comes_back(engine: ProcessEngine) -> None:
    expected = alone(engine, PROMPT, 5)
    engine.begin(Begin(0, PROMPT, (), GREEDY))
    engine.step(Step((Chunk(0, 0, 4, True),)))
    first = engine.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineFault, match=r"process ended \(exit code -9\)"):
        engine.step(Step((), (0,)))
    engine.release(0)  # as the runner does for every sequence of a failed step
    assert alone(engine, PROMPT, 5) == expected
    assert engine.pid not in (None, first)


def test_a_hanging_worker_is_replaced(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(engine, PROMPT, 3)
    monkeypatch.setattr(process, "STEP_TIMEOUT_S", 0.3)
    monkeypatch.setattr(process, "_STOP_TIMEOUT_S", 0.1)
    first = engine.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    engine.begin(Begin(0, PROMPT, (), GREEDY))
    with pytest.raises(EngineFault, match="did not answer"):
        engine.step(Step((Chunk(0, 0, 4, True),)))
    assert gone(first)
    monkeypatch.setattr(process, "STEP_TIMEOUT_S", 60.0)
    assert alone(engine, PROMPT, 3) == expected


async def test_a_service_outlives_its_engine(engine: ProcessEngine) -> None:
    async with World(engine) as world:
        expected = await world.answer(max_tokens=6)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        lost = await world.answer(max_tokens=6)
        assert lost.failure is not None and lost.failure.code == "engine"
        assert lost.failure.retryable
        again = await world.answer(max_tokens=6)
        assert again.ids == expected.ids and world.service.healthy


def test_closing_ends_the_worker(tiny_source: Path, tiny_bundle: Bundle) -> None:
    engine = ProcessEngine(setup_of(tiny_source, tiny_bundle.folder.parent))
    pid = engine.pid
    assert pid is not None
    engine.close()
    engine.close()
    assert gone(pid) and engine.pid is None


def test_the_worker_ends_with_a_core_that_was_killed(
    tiny_source: Path, tiny_bundle: Bundle
) -> None:
    code = (
        "import sys, time, msgspec;"
        "from region_core.engine.channel import Setup;"
        "from region_core.engine.process import ProcessEngine;"
        "engine = ProcessEngine(msgspec.json.decode(sys.argv[1], type=Setup));"
        "print('pid', engine.pid, flush=True); time.sleep(60)"
    )
    setup = msgspec.json.encode(setup_of(tiny_source, tiny_bundle.folder.parent)).decode()
    core = subprocess.Popen([sys.executable, "-c", code, setup], stdout=subprocess.PIPE, text=True)
    with core:
        assert core.stdout is not None
        said = next(line for line in core.stdout if line.startswith("pid "))
        core.kill()
    assert gone(int(said.split()[1]))


def test_why_it_does_not_start_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineNotStarted, match="no weights at"):
        ProcessEngine(setup_of(tmp_path / "none.gguf", tmp_path))
    nowhere = msgspec.structs.replace(setup_of(tmp_path / "none.gguf", tmp_path), device="cuda")
    with pytest.raises(EngineNotStarted):
        ProcessEngine(nowhere)


def test_torch_stays_out_of_the_core() -> None:
    code = "import sys, region_core.process, region_core.engine.process as p; print(p.__name__);"
    code += "assert not {'torch', 'gguf', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

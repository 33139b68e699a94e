"""One system for all scenarios, and a journal for each; the seed is printed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from random import Random

import pytest
import pytest_asyncio

from tests.faults.processes import System

SEED = int(os.environ.get("TRADEWIND_FAULT_SEED") or int.from_bytes(os.urandom(4)))


def pytest_report_header() -> str:
    return f"faults: TRADEWIND_FAULT_SEED={SEED}"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    system = System(tmp_path_factory.mktemp("faults"))
    try:
        await system.start()
        yield system
    finally:
        await system.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def system(whole: System) -> AsyncIterator[System]:
    """Everything runs and agrees, whatever the scenario before did."""
    await whole.heal()
    await whole.settled()
    yield whole


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Random:
    """Another one for each scenario, the same for the same seed."""
    return Random(f"{SEED} {request.node.name}")


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line whether or not the test fails."""
    plugins = request.config.pluginmanager
    reporter, capture = (plugins.get_plugin(p) for p in ("terminalreporter", "capturemanager"))

    def line(text: str) -> None:
        if reporter is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(text)

    return line

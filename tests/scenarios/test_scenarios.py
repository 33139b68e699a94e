"""Every story of this folder, against real processes: see `language` for how to write one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.scenarios.language import parse
from tests.scenarios.runner import run
from tests.scenarios.story import Story, World
from tests.scenarios.world import Running

STORIES = [
    parse(file.stem, file.read_text()) for file in sorted(Path(__file__).parent.glob("*.story"))
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worlds(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[dict[World, Running]]:
    """Started when a story first needs them: stories that name the same world share it."""
    started: dict[World, Running] = {}
    try:
        yield started
    finally:
        for running in started.values():
            await running.stop()


async def world_of(
    story: Story, worlds: dict[World, Running], factory: pytest.TempPathFactory
) -> Running:
    if story.world in worlds:
        running = worlds[story.world]
        await running.heal()
        return running
    tenants: dict[str, tuple[str, ...]] = {}
    for other in STORIES:
        for name, residency in other.tenants.items():
            assert tenants.setdefault(name, residency) == residency, f"{name} in {other.name}"
    running = worlds[story.world] = Running(factory.mktemp("world"), story.world, tenants)
    await running.start()
    return running


WRONG = """
world: london tokyo; singapore frankfurt dubai
streams: 1 at london of 20 tokens
at 100ms wait
  expect path london frankfurt via singapore within 100ms
  expect served london anyone by singapore within 0s
  expect answer london anyone 503 "no" within 0s
expect failed at least 1
expect continued at least 1000
expect silence at most 0ms
expect tokens equal
"""


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_not_so_is_told_with_its_line(
    worlds: dict[World, Running], tmp_path_factory: pytest.TempPathFactory
) -> None:
    story = parse("wrong", WRONG)
    told = await run(story, await world_of(story, worlds, tmp_path_factory))
    lines = sorted(int(problem.split(":")[1]) for problem in told.problems)
    assert lines == [5, 6, 7, 8, 9, 10], told.problems


@pytest.mark.parametrize("story", STORIES, ids=[story.name for story in STORIES])
@pytest.mark.asyncio(loop_scope="module")
async def test_story(
    story: Story, worlds: dict[World, Running], tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = await run(story, await world_of(story, worlds, tmp_path_factory))
    print(told)
    assert not told.problems, "\n".join(told.problems)

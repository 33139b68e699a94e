"""Runs a story against real processes, and says line by line what was not as it should be."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.scenarios.load import Load, differences
from tests.scenarios.story import (
    Answer,
    AtTheEnd,
    Awaited,
    ChangesAtMost,
    Count,
    PathIs,
    Process,
    ServedBy,
    SilenceAtMost,
    Step,
    Story,
    Wait,
)
from tests.scenarios.world import Running

_PAUSE_S = 0.03  # between two looks
_AFTERMATH_S = 0.3  # streams go on for so long after all that was awaited
_SHOWN = 3
_RELATIONS = {"==": operator.eq, ">=": operator.ge, "<=": operator.le}
_CHANGES = "tradewind_edge_path_changes_total{"
_CONTINUED = "tradewind_edge_resumed_total"


@dataclass
class Told:
    """How a story went. `problems`: what was not as expected, with the line that says so."""

    problems: list[str] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)  # how long things took that were awaited
    counts: dict[str, int] = field(default_factory=dict)
    silence_s: float = 0.0
    counted: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)  # edges' metrics


async def run(story: Story, running: Running) -> Told:
    """One story, in a world that is whole."""
    told = Told()
    load = Load(running, story.streams, story.name)
    before = {edge: await running.metrics(edge) for edge in story.world.edges}
    try:
        await load.start()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for step in story.steps:
            await asyncio.sleep(begun + step.at_s - loop.time())
            await _act(step, running)
            await asyncio.gather(*(_await(a, running, story, told) for a in step.awaited))
        await asyncio.sleep(max(begun + story.end_s - loop.time(), _AFTERMATH_S))
        await load.stop()
    finally:
        load.abandon()
    for edge, earlier in before.items():
        later = await running.metrics(edge)
        told.counted[edge] = {name: n - earlier.get(name, 0.0) for name, n in later.items()}
    for expected in story.expected:
        if said := await _at_the_end(expected, load, running, told):
            told.problems.append(f"{story.name}:{expected.line}: {said}")
    return told


async def _act(step: Step, running: Running) -> None:
    action = step.action
    if isinstance(action, Wait):
        return
    if isinstance(action, Process):
        await running.act(action.verb, action.name)
    elif not action.figures:
        await running.wan.reset(action.names, action.way)
    else:
        await running.wan.set(action.names, action.way, for_ms=action.for_ms, **action.figures)


async def _await(awaited: Awaited, running: Running, story: Story, told: Told) -> None:
    loop = asyncio.get_running_loop()
    begun = asked = loop.time()
    look = _look(awaited.what, running)
    while True:
        found, instead = await look()
        late = asked - begun >= awaited.within_s
        if found and (not late or asked == begun):
            took_ms = (loop.time() - begun) * 1000
            told.awaited.append(f"line {awaited.line} after {took_ms:.0f} ms")
            return
        if late:
            text = f"within {awaited.within_s:g}s it was not so, but: {instead}"
            told.problems.append(f"{story.name}:{awaited.line}: {text}")
            return
        await asyncio.sleep(_PAUSE_S)
        asked = loop.time()


def _look(
    what: PathIs | ServedBy | Answer, running: Running
) -> Callable[[], Awaitable[tuple[bool, str]]]:
    """A look at whether it is so, and at what is instead."""

    async def path() -> tuple[bool, str]:
        assert isinstance(what, PathIs)
        found = await running.path(what.edge, what.region)
        return found == what.path, f"the path is {found!r}"

    async def served() -> tuple[bool, str]:
        assert isinstance(what, ServedBy)
        reply = await running.ask(what.edge, what.tenant)
        region = reply.headers.get("x-tradewind-region", "") or f"nobody: {reply.text[:200]}"
        return region in what.regions, f"served by {region}"

    async def answer() -> tuple[bool, str]:
        assert isinstance(what, Answer)
        reply = await running.ask(what.edge, what.tenant)
        right = reply.status_code == what.status and what.text in reply.text
        return right, f"HTTP {reply.status_code}: {reply.text[:200]}"

    return {PathIs: path, ServedBy: served, Answer: answer}[type(what)]


async def _at_the_end(expected: AtTheEnd, load: Load, running: Running, told: Told) -> str:
    """What is not so; empty where all is well."""
    what = expected.what
    if isinstance(what, Count):
        return _count(what, load, told)
    if isinstance(what, ChangesAtMost):
        return _changes(what, told)
    if isinstance(what, SilenceAtMost):
        told.silence_s = max(stream.silence_s for stream in load.streams)
        if told.silence_s <= what.seconds:
            return ""
        return f"a stream was silent for {told.silence_s * 1000:.0f} ms"
    wrong = await differences(running, load.streams)
    return f"{len(wrong)} streams differ: {'; '.join(wrong[:_SHOWN])}" if wrong else ""


def _changes(what: ChangesAtMost, told: Told) -> str:
    counted = told.counted[what.edge].items()
    named = (n for name, n in counted if name.startswith(_CHANGES) and _of(what.region) in name)
    told.counts["changes"] = number = int(sum(named))
    return "" if number <= what.number else f"the path changed {number} times"


def _of(region: str) -> str:
    return f'region="{region}"'


def _count(what: Count, load: Load, told: Told) -> str:
    streams = [s for s in load.streams if what.tenant in ("", s.tenant)]
    reasons: list[str] = []
    if what.what == "streams":
        number = len(streams)
    elif what.what == "continued":
        number = int(sum(metrics.get(_CONTINUED, 0.0) for metrics in told.counted.values()))
    elif what.what == "broken":
        reasons = [s.broken for s in streams if s.broken]
        number = len(reasons)
    else:
        reasons = [s.told or s.broken for s in streams if not s.whole]
        number = len(reasons)
    told.counts[what.what] = number
    if _RELATIONS[what.relation](number, what.number):
        return ""
    return f"{what.what}: {number}; {'; '.join(reasons[:_SHOWN])}"

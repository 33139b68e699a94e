"""A core whose engine is stuck: it says so, to whoever asks, and says when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from region_core.stall import FIRST_S, LEAST_S, StallWatch
from tests.region_core.cores import MODEL, RunningCore
from topology.overlay.frames import End, Request


def test_the_first_steps_get_their_time() -> None:
    watch = StallWatch(100.0)
    assert not watch.stalled(100.0 + FIRST_S)
    assert watch.stalled(100.1 + FIRST_S)
    for n in range(3):
        watch.stepped(101.0 + n, 0.01)
    assert not watch.stalled(103.0 + LEAST_S)
    assert watch.stalled(103.1 + LEAST_S)


def test_work_that_comes_after_a_rest_gets_its_time() -> None:
    watch = StallWatch(0.0)
    for n in range(5):
        watch.stepped(float(n), 0.01)
    assert watch.stalled(1000.0)  # asked only while there is work
    watch.woken(1000.0)
    assert not watch.stalled(1000.5)


def test_long_steps_are_usual_where_they_are_usual_and_a_hang_is_not() -> None:
    watch = StallWatch(0.0)
    for n in range(10):
        watch.stepped(2.0 * n, 2.0)
    assert watch.limit_s == pytest.approx(8.0)
    for n in range(500):
        watch.stepped(20.0 + 0.1 * n, 0.1)
    usual = watch.limit_s
    assert usual < 1.1
    watch.stepped(1000.0, 600.0)
    assert watch.limit_s <= 2 * usual


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=80))
def test_the_limit_follows_the_longest_step_and_stays_within_it(steps: list[float]) -> None:
    watch, now = StallWatch(0.0), 0.0
    for took in steps:
        now += took
        watch.stepped(now, took)
        assert not watch.stalled(now)
    if len(steps) >= 3:
        assert LEAST_S <= watch.limit_s <= max(LEAST_S, 4 * max(steps))


async def until(holds: Callable[[], bool], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


async def test_an_edge_sees_that_an_engine_hangs_and_that_it_goes_on(tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    sim = {"step_ms": 5.0, "hang_while": str(stuck), "answer_tokens_min": 400,
           "answer_tokens_max": 400}  # fmt: skip
    async with RunningCore(tmp_path / "pki", sim=sim) as core:
        body = b'{"model":"%s","messages":[{"role":"user","content":"hi"}]}' % MODEL.encode()
        asked = Request("r", "acme", MODEL, 60_000, 3, 1, True)
        exchange = core.tunnel.open(asked, body)
        for _ in range(6):
            await exchange.next()
        stuck.touch()
        await until(lambda: core.tunnel.estimate.state == "stalled")
        assert not core.tunnel.connected
        assert "serves nothing" in core.tunnel.estimate.why
        assert core.core.service.healthy
        assert core.core.service.report().stalled
        assert core.tunnel.status.path_downs == 0
        stuck.unlink()
        await until(lambda: core.tunnel.connected)
        while not isinstance(await exchange.next(), End):
            pass
        assert not core.core.service.stalled

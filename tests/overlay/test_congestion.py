"""The congestion controller over simulated paths: lossy, narrow, and both."""

from __future__ import annotations

import pytest

from tests.overlay.pair import Pair
from tests.overlay.test_transport import Echo, ask


def seconds_for(pair: Pair, size: int) -> float:
    """How long an upload of `size` bytes takes, and its two echoes back."""
    pair.connect()
    echo = Echo(pair)
    begin = pair.now
    stream = ask(pair.client, b"u" * size)
    assert pair.run(600, lambda: stream in echo.done)
    return pair.now - begin


def test_random_loss_below_the_threshold_costs_little() -> None:
    clean = seconds_for(Pair(delay_s=0.09), 1_000_000)
    lossy = sorted(seconds_for(Pair(seed, loss=0.01, delay_s=0.09), 1_000_000) for seed in range(5))
    assert lossy[2] < 1.8 * clean


@pytest.mark.parametrize("delay_s", [0.005, 0.05])
@pytest.mark.parametrize("queue_bytes", [20_000, 200_000])
def test_a_bottleneck_is_filled_and_not_flooded(delay_s: float, queue_bytes: int) -> None:
    pair = Pair(delay_s=delay_s, bytes_per_s=1_000_000, queue_bytes=queue_bytes)
    size = 3_000_000
    took = seconds_for(pair, size)
    ideal = 3 * size / 1_000_000  # up, and twice that back
    assert took < 2.0 * ideal
    sent = pair.datagrams["client"] + pair.datagrams["server"]
    assert pair.overflowed < 0.08 * sent


def test_heavy_loss_shrinks_the_window_and_still_gets_through() -> None:
    pair = Pair(3, loss=0.2, delay_s=0.02).connect()
    echo = Echo(pair)
    stream = ask(pair.client, b"h" * 300_000)
    assert pair.run(600, lambda: stream in echo.done)
    assert pair.server._loss.congestion_window < 32 * 1350


def test_a_window_does_not_grow_while_it_is_not_used() -> None:
    pair = Pair(delay_s=0.02).connect()
    echo = Echo(pair)
    for _ in range(300):
        stream = ask(pair.client, b"s" * 300)
        assert pair.run(5, lambda stream=stream: stream in echo.done)
    assert pair.client._loss.congestion_window <= 40 * 1350


def test_a_path_that_was_cut_for_a_while_soon_takes_again_what_it_took() -> None:
    pair = Pair(delay_s=0.05).connect()
    echo = Echo(pair)

    def burst() -> float:
        begin = pair.now
        streams = [ask(pair.client, b"b" * 1500) for _ in range(150)]
        assert pair.run(60, lambda: echo.done.issuperset(streams))
        return pair.now - begin

    burst()
    before = burst()
    pair._loss = 1.0
    lost = [ask(pair.client, b"l" * 1500) for _ in range(20)]
    for n in range(20):  # as a monitor does
        if n == 2:
            for stream in lost:
                pair.client.abandon(stream, 16)
        pair.client.send_datagram(b"?")
        pair.run(0.1)
    pair._loss = 0.0
    for _ in range(3):
        pair.client.send_datagram(b"?")
        pair.run(0.15)
    assert pair.client._loss.congestion_window < 8 * 1350  # it was cut down
    burst()
    assert burst() < 2.5 * before

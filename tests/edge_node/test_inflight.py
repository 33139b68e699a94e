"""Limits and presence of requests under way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge_node.inflight import TICK_S, Cause, Flights


class Client:
    """Goes away when told."""

    def __init__(self) -> None:
        self.watched: asyncio.Future[None] | None = None

    def client_disconnect(self) -> Any:
        self.watched = asyncio.get_running_loop().create_future()
        return self.watched


async def _stopped(
    flights: Flights, client: Client, limit_s: float, sleep_s: float
) -> Cause | None:
    flight = flights.open(client, limit_s, Cause.SLOW_BODY)
    try:
        await asyncio.sleep(sleep_s)
    except asyncio.CancelledError:
        assert flight.cause is not None
        flight.task.uncancel()
        return flight.cause
    finally:
        flights.close(flight)
    return None


async def test_a_limit_strikes_once_it_has_passed_and_not_before() -> None:
    flights, loop = Flights(), asyncio.get_running_loop()
    took = []
    while not took or (min(took) > 0.12 + 4 * TICK_S and len(took) < 10):  # the machine may be busy
        begin = loop.time()
        assert await _stopped(flights, Client(), 0.12, 5.0) is Cause.SLOW_BODY
        took.append(loop.time() - begin)
    assert 0.12 <= min(took) <= 0.12 + 4 * TICK_S
    assert await _stopped(flights, Client(), 0.2, 0.05) is None
    await asyncio.sleep(0.2 + 4 * TICK_S)
    assert len(flights) == 0


async def test_a_client_that_leaves_stops_its_request() -> None:
    flights, client = Flights(), Client()
    task = asyncio.create_task(_stopped(flights, client, 9.0, 9.0))
    while client.watched is None:
        await asyncio.sleep(0.01)
    client.watched.set_result(None)
    assert await task is Cause.DISCONNECT


async def test_a_client_that_was_let_go_of_stops_nothing() -> None:
    """Not even one that had gone just before: others wait for the answer by now."""
    flights, client = Flights(), Client()
    flight = flights.open(client, 9.0, Cause.SLOW_BODY)
    flight.strike(flight.wake)
    assert client.watched is not None
    client.watched.set_result(None)
    flight.detach()
    await asyncio.sleep(0)
    assert flight.cause is None
    flights.close(flight)


async def test_the_watch_ends_with_the_request() -> None:
    flights, client = Flights(), Client()
    assert await _stopped(flights, client, 9.0, 0.2) is None
    assert client.watched is not None and client.watched.cancelled()


async def test_a_stage_ends_with_the_deadline_at_the_latest() -> None:
    flights = Flights()
    flight = flights.open(Client(), 5.0, Cause.SLOW_BODY)
    now = asyncio.get_running_loop().time()
    flight.due(now + 0.1)
    flight.stage(now + 3.0, Cause.SILENCE)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(2.0)
    assert flight.cause is Cause.DEADLINE
    flight.carry_on()
    flights.close(flight)


async def test_a_handled_silence_lets_the_request_go_on_and_be_stopped_again() -> None:
    flights = Flights()
    flight = flights.open(Client(), 5.0, Cause.SLOW_BODY)
    now = asyncio.get_running_loop().time()
    flight.due(now + 2.0)
    for _ in range(2):
        flight.stage(asyncio.get_running_loop().time() + 0.05, Cause.SILENCE)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(2.0)
        assert flight.cause is Cause.SILENCE
        flight.carry_on()
    flight.stage(now + 9.0, Cause.SILENCE)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(8.0)
    assert flight.cause is Cause.DEADLINE
    flight.carry_on()
    flights.close(flight)


async def test_a_limit_that_struck_behind_a_passing_cause_strikes_again() -> None:
    flights = Flights()
    flight = flights.open(Client(), 5.0, Cause.SLOW_BODY)
    now = asyncio.get_running_loop().time()
    flight.due(now + 9.0)
    flight.stage(now, Cause.SILENCE)
    flight.stop(Cause.STALL)
    flight.strike(now)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5.0)
    assert flight.cause is Cause.STALL
    flight.carry_on()  # and nobody else can take over: it goes on waiting
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(5.0)
    assert flight.cause is Cause.SILENCE
    flight.carry_on()
    flights.close(flight)


async def test_one_client_that_cannot_be_watched_leaves_the_others_their_limits() -> None:
    class Broken:
        def client_disconnect(self) -> Any:
            raise RuntimeError("no longer there")

    flights, loop = Flights(), asyncio.get_running_loop()
    said: list[Any] = []
    loop.set_exception_handler(lambda _, context: said.append(context["exception"]))
    broken = flights.open(Broken(), 9.0, Cause.SLOW_BODY)
    assert await _stopped(flights, Client(), 0.3, 5.0) is Cause.SLOW_BODY
    assert [str(error) for error in said] == ["no longer there"]
    flights.close(broken)


async def test_a_final_cause_outranks_silence() -> None:
    flights = Flights()
    flight = flights.open(Client(), 5.0, Cause.SLOW_BODY)
    flight.stop(Cause.SILENCE)
    flight.stop(Cause.SHUTDOWN)
    flight.stop(Cause.DISCONNECT)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    assert flight.cause is Cause.SHUTDOWN
    flight.carry_on()
    flights.close(flight)


async def test_draining_waits_for_all() -> None:
    flights = Flights()
    await flights.drained()
    tasks = [asyncio.create_task(_stopped(flights, Client(), 9.0, s)) for s in (0.05, 0.1)]
    await asyncio.sleep(0)
    await asyncio.wait_for(flights.drained(), 10.0)
    assert all(task.done() for task in tasks) or len(flights) == 0
    await asyncio.gather(*tasks)


async def test_all_can_be_stopped() -> None:
    flights = Flights()
    tasks = [asyncio.create_task(_stopped(flights, Client(), 9.0, 9.0)) for _ in range(5)]
    await asyncio.sleep(0)
    flights.stop_all(Cause.SHUTDOWN)
    assert await asyncio.gather(*tasks) == [Cause.SHUTDOWN] * 5

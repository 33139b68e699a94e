"""An exchange read with `pour` against one read with `next`: the same answer, the same end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.overlay.test_frames import cut
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Exchange
from topology.overlay.frames import Accept, End, Failure, Tokens, encode

WINDOW = 2**16
LAST: dict[str, Any] = {
    "end": End("stop", 1, 1, 0.0),
    "error": Failure("engine", "broke", 500, True),
}
ERRORS = (PathDown, RegionFailure, OverlayProtocolError)


class Connection:
    """What an exchange asks of its connection."""

    def __init__(self) -> None:
        self.granted = 0
        self.abandoned = 0

    def grant(self, stream_id: int, limit_bytes: int) -> None:
        self.granted = limit_bytes

    def abandon(self, stream_id: int, code: int) -> None:
        self.abandoned += 1


def answer(texts: Sequence[str], last: str) -> bytes:
    data, position = encode(Accept(0.0, 0.0, "r", "e")), 0
    for text in texts:
        ids = tuple(range(len(text) % 3))  # some have none
        data += encode(Tokens(position, ids, text))
        position += len(ids)
    return data + (encode(LAST[last]) if last in LAST else b"")


def made(connection: Connection | None = None) -> Exchange:
    return Exchange("frankfurt", connection or Connection(), 0, WINDOW)  # type: ignore[arg-type]


async def by_next(exchange: Exchange) -> list[object]:
    seen: list[object] = []
    try:
        while not isinstance(frame := await exchange.next(), End):
            seen.append(frame)
        seen.append(frame)
    except ERRORS as error:
        seen.append(str(error))
    return seen


def answer_of(seen: list[object]) -> list[Any]:
    """What was seen, with all tokens and all text of it in one."""
    tokens = [frame for frame in seen if isinstance(frame, Tokens)]
    ids = [(frame.position + i, n) for frame in tokens for i, n in enumerate(frame.ids)]
    text = "".join(frame.text for frame in tokens)
    return [ids, text, *(frame for frame in seen if not isinstance(frame, Tokens))]


async def by_pour(exchange: Exchange) -> list[object]:
    seen: list[object] = []
    try:
        while not isinstance(frame := await exchange.pour(seen.append), End):
            seen.append(frame)
        seen.append(frame)
    except ERRORS as error:
        seen.append(str(error))
    return seen


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(max_size=90), max_size=12),
    st.sampled_from(["end", "error", "path", "cut", "garbage"]),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.lists(st.booleans(), min_size=1, max_size=6),
)
def test_pour_gives_what_next_gives(
    texts: list[str], last: str, sizes: list[int], turns: list[bool]
) -> None:
    """However the bytes are cut, and whether or not the reader runs in between."""

    async def run() -> None:
        exchanges = made(), made()
        readers = [
            asyncio.ensure_future(read(exchange))
            for read, exchange in zip((by_next, by_pour), exchanges, strict=True)
        ]
        data = answer(texts, last) + (b"\x00" if last == "garbage" else b"")
        for number, chunk in enumerate(cut(data, sizes)):
            for exchange in exchanges:
                exchange.feed(chunk, False)
            if turns[number % len(turns)]:
                await asyncio.sleep(0)
        for exchange in exchanges:
            if last == "path":
                exchange.fail(PathDown("frankfurt", "gone"))
            else:
                exchange.feed(b"", True)
        one, other = await asyncio.wait_for(asyncio.gather(*readers), 5)
        if last == "garbage":  # what arrived with it may be lost, and with `next` more does
            assert one[-1] == other[-1]
            assert answer_of(one)[0] == answer_of(other)[0][: len(answer_of(one)[0])]
        else:
            assert answer_of(one) == answer_of(other)

    asyncio.run(run())


async def test_a_token_is_passed_on_in_the_turn_in_which_it_arrives() -> None:
    exchange = made()
    seen: list[Tokens] = []
    reading = asyncio.ensure_future(exchange.pour(seen.append))
    await asyncio.sleep(0)
    for position in range(3):
        exchange.feed(encode(Tokens(position, (7,), "a")), False)
        assert [frame.position for frame in seen] == list(range(position + 1))
    exchange.feed(encode(LAST["end"]), True)
    assert await reading == LAST["end"]


async def test_tokens_that_arrive_together_are_passed_on_as_one() -> None:
    exchange = made()
    seen: list[Tokens] = []
    reading = asyncio.ensure_future(exchange.pour(seen.append))
    await asyncio.sleep(0)
    behind = [Tokens(0, (1,), "a"), Tokens(1, (2, 3), "b"), Tokens(3, (), "held"), LAST["end"]]
    exchange.feed(b"".join(map(encode, behind)), False)
    assert seen == [Tokens(0, (1, 2, 3), "ab"), Tokens(3, (), "held")]
    assert await reading == LAST["end"]


async def test_what_the_taker_raises_ends_the_pouring_and_takes_nothing_more() -> None:
    exchange = made()
    seen: list[Tokens] = []

    def take(frame: Tokens) -> None:
        seen.append(frame)
        raise OverlayProtocolError("no")

    reading = asyncio.ensure_future(exchange.pour(take))
    await asyncio.sleep(0)
    for position in range(3):
        exchange.feed(encode(Tokens(position, (7,), "a")), False)
    with pytest.raises(OverlayProtocolError, match="no"):
        await reading
    assert len(seen) == 1


async def test_an_interrupted_pour_goes_on_without_losing_a_token() -> None:
    exchange = made()
    seen: list[Tokens] = []
    for position in range(4):
        reading = asyncio.ensure_future(exchange.pour(seen.append))
        await asyncio.sleep(0)
        exchange.feed(encode(Tokens(2 * position, (7,), "a")), False)
        reading.cancel()
        exchange.feed(encode(Tokens(2 * position + 1, (7,), "b")), False)
        with pytest.raises(asyncio.CancelledError):
            await reading
    exchange.feed(encode(LAST["end"]), True)
    assert await exchange.pour(seen.append) == LAST["end"]
    assert [frame.position for frame in seen] == list(range(8))


async def test_the_region_may_send_more_as_tokens_are_passed_on() -> None:
    connection = Connection()
    exchange = made(connection)
    seen: list[Tokens] = []
    reading = asyncio.ensure_future(exchange.pour(seen.append))
    await asyncio.sleep(0)
    size = len(encode(Tokens(0, (), "a" * 40)))
    for _ in range(WINDOW // size // 2 + 1):
        exchange.feed(encode(Tokens(0, (), "a" * 40)), False)
    assert connection.granted > WINDOW
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert connection.abandoned == 1

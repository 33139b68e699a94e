"""Orders to the WAN emulator: obeyed whole or not at all, with errors that say what there is."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from lab.errors import LabError
from lab.wan import Answer, Flap, WanControl
from lab.wan.control import serve
from tests.lab.wan_worlds import round_trip_ms, silent, world

NAMES = ("tokyo-singapore", "tokyo-dubai", "london-frankfurt")


@asynccontextmanager
async def controlled(folder: Path) -> AsyncIterator[tuple[WanControl, object]]:
    async with world(*NAMES, rtt_ms=10) as (wan, client, _echo):
        server = await serve(folder / "wan.sock", wan)
        try:
            yield WanControl(folder / "wan.sock"), client
        finally:
            server.close()
            await server.wait_closed()


async def test_links_with_their_figures_and_counters(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (wan, client):
        await round_trip_ms(client)  # type: ignore[arg-type]
        links = await wan.links()
        assert [link.name for link in links] == list(NAMES)
        first = links[0]
        assert (first.out.figures.latency_ms, first.out.up, first.clients) == (5, True, 1)
        assert first.out.counters.delivered == first.back.counters.delivered == 1
        assert first.out.counters.delivered_bytes == 4
        assert [link.name for link in await wan.links("*-dubai")] == ["tokyo-dubai"]
        assert (tmp_path / "wan.sock").stat().st_mode & 0o777 == 0o600


async def test_set_cut_mend_flap_and_reset(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (wan, client):
        before = time.monotonic()
        answer = await wan.cut("tokyo-*", "back")
        assert before <= answer.at_s <= time.monotonic()
        assert [link.back.up for link in answer.links] == [False, False]
        assert [link.out.up for link in answer.links] == [True, True]
        assert await silent(client)  # type: ignore[arg-type]
        await wan.mend("tokyo-*")
        await round_trip_ms(client)  # type: ignore[arg-type]
        flapping = (await wan.flap("tokyo-dubai", 2000, 500, random=True)).links[0]
        assert flapping.out.figures.flap == flapping.back.figures.flap == Flap(2000, 500, True)
        changed = (await wan.set("tokyo-singapore", "out", rtt_ms=200, loss=0.3)).links[0]
        assert (changed.out.figures.latency_ms, changed.out.figures.loss) == (100, 0.3)
        assert (changed.back.figures.latency_ms, changed.back.figures.loss) == (5, 0)
        assert {(link.out.figures.latency_ms, link.out.figures.flap)
                for link in (await wan.reset()).links} == {(5, None)}  # fmt: skip


async def test_for_a_while(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (wan, _client):
        link = (await wan.set("london-frankfurt", for_ms=300, loss=1, jitter_ms=7)).links[0]
        assert set(link.out.left_s) == {"loss", "jitter_ms"}
        assert 0 < link.out.left_s["loss"] <= 0.3
        async with asyncio.timeout(20):
            while link.out.left_s:
                await asyncio.sleep(0.05)
                link = (await wan.links("london-frankfurt"))[0]
        assert (link.out.figures.loss, link.back.figures.jitter_ms) == (0, 0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "not an order"),
        (b"[]", "not an order"),
        (b'{"verb": "set"', "not an order"),
        (b'{"verb": "burn", "link": "*"}', "burn"),
        (b'{"verb": "set", "link": "*", "loss": 3}', "loss"),
        (b'{"verb": "set", "link": "*", "loss": "much"}', "loss"),
        (b'{"verb": "set", "link": "*", "losss": 0.1}', "losss"),
        (b'{"verb": "set", "link": "*"}', "no figure is given"),
        (b'{"verb": "set", "cut": true}', "link"),
        (b'{"verb": "set", "link": [], "cut": true}', "no link is named"),
        (b'{"verb": "set", "link": "", "cut": true}', "no link ''"),
        (b'{"verb": "set", "link": ["*", "oslo-*"], "cut": true}', "no link 'oslo-\\*'"),
        (b'{"verb": "set", "link": "tokyo-singapor", "cut": true}', "did you mean 'tokyo-sing"),
        (b'{"verb": "set", "link": "*", "direction": "up", "cut": true}', "direction"),
        (b'{"verb": "set", "link": "*", "cut": true, "for_ms": -1}', "for_ms"),
        (b'{"verb": "set", "link": "*", "cut": true, "for_ms": 1e300}', "for_ms"),
        (b'{"verb": "set", "link": "*", "flap": {"up_ms": 1, "down_ms": 100}}', "up_ms"),
        (b'{"verb": "reset", "link": "*", "cut": true}', "takes no figures"),
        (b'{"verb": "ls", "link": "*", "for_ms": 5}', "takes no figures"),
        (b'{"verb": "set", "link": "\xff", "cut": true}', "not an order"),
        (b"x" * 200_000, None),
    ],
)
async def test_a_wrong_order_is_told_what_is_wrong_and_changes_nothing(
    tmp_path: Path, line: bytes, says: str | None
) -> None:
    async with controlled(tmp_path) as (wan, _client):
        reader, writer = await asyncio.open_unix_connection(wan.path)
        writer.write(line + b"\n")
        try:
            said = await asyncio.wait_for(reader.read(), 20)
        except ConnectionError:
            said = b""
        writer.close()
        if says is not None:
            with pytest.raises(AssertionError, match=says):
                raise AssertionError(msgspec.json.decode(said, type=Answer).error)
        for link in await wan.links():
            assert link.out.figures == link.back.figures
            assert (link.out.figures.latency_ms, link.out.up) == (5, True)
            assert link.out.figures.loss == 0


async def test_a_name_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    async with world() as (wan, _client, _echo):
        with pytest.raises(LabError, match="cannot listen at") as caught:
            await serve(tmp_path / ("x" * 120) / "wan.sock", wan)
        assert "shorter" in caught.value.hint


async def test_what_the_kernel_dropped_is_told(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (wan, client):
        assert isinstance(client, socket.socket)
        for _ in range(12_000):  # while the emulator, on this very loop, reads nothing
            client.send(bytes(1000))
        async with asyncio.timeout(20):
            while True:
                out = (await wan.links("tokyo-singapore"))[0].out
                if out.unread + out.counters.sent >= 12_000:
                    break
                await asyncio.sleep(0.05)
        assert out.unread > 0
        assert out.unread + out.counters.sent == 12_000


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no WAN emulator answers") as caught:
        await WanControl(tmp_path / "wan.sock").links()
    assert "--serve" in caught.value.hint


async def test_a_client_says_what_is_no_figure(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (wan, _client):
        with pytest.raises(LabError, match="losss"):
            await wan.set("*", losss=1)
        with pytest.raises(LabError, match="loss"):
            await wan.set("*", loss=7)

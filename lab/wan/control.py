"""Change links from outside: one line of JSON asks, one line answers, over a unix socket.

    {"verb": "set", "link": "tokyo-*", "direction": "out", "loss": 0.3, "for_ms": 10000}

The socket is for its owner alone. An order that is wrong in any way changes nothing.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lab.errors import LabError
from lab.wan.emulator import Wan
from lab.wan.figures import (
    FIGURES,
    BitPerSecond,
    Bytes,
    Figures,
    Flap,
    Milliseconds,
    Share,
    Way,
    checked,
)
from lab.wan.kernel import unread
from lab.wan.relay import CLOCK, Counters, Direction, Relay
from runtime.errors import TradewindError

SOCKET = "wan.sock"
_TIMEOUT_S = 10.0
_MAX_LINE_BYTES = 2**20
_MAX_ORDER_BYTES = 64 * 1024
_MAX_FOR_MS = 24 * 3_600_000.0


class Order(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What is asked. `link`: a name, a pattern, or several. Of the figures, those that are left
    out stay as they are; `rtt_ms` sets the latency of each direction to half of it."""

    verb: Literal["ls", "set", "reset"]
    link: str | tuple[str, ...]
    direction: Way = "both"
    for_ms: float = 0.0  # after which the change undoes itself; 0: it lasts
    rtt_ms: Milliseconds | UnsetType = UNSET
    latency_ms: Milliseconds | UnsetType = UNSET
    jitter_ms: Milliseconds | UnsetType = UNSET
    loss: Share | UnsetType = UNSET
    bandwidth_bit_per_s: BitPerSecond | UnsetType = UNSET
    queue_ms: Milliseconds | UnsetType = UNSET
    queue_bytes: Bytes | UnsetType = UNSET
    duplicate: Share | UnsetType = UNSET
    reorder: Share | UnsetType = UNSET
    cut: bool | UnsetType = UNSET
    flap: Flap | UnsetType | None = UNSET

    @property
    def figures(self) -> dict[str, Any]:
        named = ((name, getattr(self, name)) for name in ("rtt_ms", *FIGURES))
        return {name: value for name, value in named if value is not UNSET}


class WayState(Struct, frozen=True):
    """One direction: its figures now, for how many seconds those that were set for a while will
    hold, whether it carries anything at this moment, and what became of its packets. `unread`:
    those that the kernel dropped before, because the emulator was too slow for them."""

    figures: Figures
    left_s: dict[str, float]
    up: bool
    counters: Counters
    unread: int = 0


class LinkState(Struct, frozen=True):
    """One link. `clients`: addresses that it has heard from."""

    name: str
    listen: str
    target: str
    clients: int
    out: WayState
    back: WayState


class Answer(Struct, frozen=True):
    """What the emulator says: `error` is empty when it was done. `at_s`: when that was, on the
    machine's monotonic clock, which all its processes share. `links`: those that were named."""

    error: str = ""
    at_s: float = 0.0
    links: tuple[LinkState, ...] = ()


def obey(wan: Wan, order: Order) -> Answer:
    """Carry out an order. Raises `LabError`, and then nothing has been changed."""
    figures = order.figures
    if order.verb != "set" and (figures or order.for_ms):
        raise LabError(f"{order.verb} takes no figures")
    if not 0 <= order.for_ms <= _MAX_FOR_MS:
        raise LabError(f"for_ms is 0 to {_MAX_FOR_MS:.0f}, not {order.for_ms}")
    found: tuple[Relay, ...]
    if order.verb == "set":
        found = wan.set(order.link, order.direction, for_ms=order.for_ms, **figures)
    elif order.verb == "reset":
        found = wan.reset(order.link, order.direction)
    else:
        found = wan.named(order.link)
    now = CLOCK.now()
    drops = unread()
    return Answer(at_s=now, links=tuple(_link_state(relay, now, drops) for relay in found))


def _link_state(relay: Relay, now: float, drops: dict[tuple[str, int], int]) -> LinkState:
    link = relay.link
    lost_out, lost_back = relay.unread(drops)
    out, back = _way_state(relay.out, now, lost_out), _way_state(relay.back, now, lost_back)
    return LinkState(link.name, link.listen, link.target, relay.clients, out, back)


def _way_state(way: Direction, now: float, lost: int) -> WayState:
    left = {name: round(s, 3) for name, s in way.held.left_s(now).items()}
    return WayState(way.held.at(now), left, way.impairment.up(now), way.counters, lost)


async def serve(path: Path, wan: Wan) -> asyncio.Server:
    """Take orders at `path`. Raises `LabError` where that cannot be."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT_S)
            writer.write(msgspec.json.encode(_carry_out(line, wan)) + b"\n")
            await writer.drain()
        except (OSError, TimeoutError, ValueError):
            return  # whoever asked has gone, or sent a line without end
        finally:
            writer.close()

    try:
        listening = _listen(path)
    except OSError as error:
        raise LabError(
            f"cannot listen at {path}: {error}",
            hint="is the folder there, may we write to it, and is its name shorter than 100?",
        ) from error
    return await asyncio.start_unix_server(talk, sock=listening, limit=_MAX_ORDER_BYTES)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        path.chmod(0o600)  # before anybody can connect
    except OSError:
        made.close()
        raise
    return made


def _carry_out(line: bytes, wan: Wan) -> Answer:
    try:
        return obey(wan, msgspec.json.decode(line, type=Order))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Answer(error=f"not an order: {error}")
    except TradewindError as error:
        return Answer(error=str(error))


class WanControl:
    """Speaks to a running emulator. Every call raises `LabError` when it was not obeyed, and
    returns what the links are then like.

        wan = WanControl(Path(".lab/wan.sock"))
        answer = await wan.cut("london-frankfurt", "out", for_ms=5000)
        answer.at_s  # when it was cut, on the clock of time.monotonic()
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def links(self, link: str | tuple[str, ...] = "*") -> tuple[LinkState, ...]:
        return (await self.send(Order(verb="ls", link=link))).links

    async def set(
        self,
        link: str | tuple[str, ...],
        direction: Way = "both",
        *,
        for_ms: float = 0.0,
        **figures: Any,
    ) -> Answer:
        """Figures by the names that `Order` has."""
        checked(figures)
        order = Order(verb="set", link=link, direction=direction, for_ms=for_ms, **figures)
        return await self.send(order)

    async def cut(
        self, link: str | tuple[str, ...], direction: Way = "both", *, for_ms: float = 0.0
    ) -> Answer:
        return await self.set(link, direction, for_ms=for_ms, cut=True)

    async def mend(self, link: str | tuple[str, ...], direction: Way = "both") -> Answer:
        """Neither cut nor flapping any more; other figures stay."""
        return await self.set(link, direction, cut=False, flap=None)

    async def flap(
        self,
        link: str | tuple[str, ...],
        up_ms: float,
        down_ms: float,
        direction: Way = "both",
        *,
        random: bool = False,
        for_ms: float = 0.0,
    ) -> Answer:
        flap = Flap(up_ms, down_ms, random)
        return await self.set(link, direction, for_ms=for_ms, flap=flap)

    async def reset(self, link: str | tuple[str, ...] = "*", direction: Way = "both") -> Answer:
        """Everything as the settings have it."""
        return await self.send(Order(verb="reset", link=link, direction=direction))

    async def send(self, order: Order) -> Answer:
        try:
            reader, writer = await asyncio.open_unix_connection(self.path, limit=_MAX_LINE_BYTES)
        except OSError as error:
            raise LabError(
                f"no WAN emulator answers at {self.path}: {error.strerror or error}",
                hint="start a lab with `tradewind lab --serve`, or name its folder with "
                "`tradewind lab --directory`",
            ) from error
        try:
            writer.write(msgspec.json.encode(order) + b"\n")
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT_S)
            answer = msgspec.json.decode(line, type=Answer)
        except (OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
            raise LabError(f"the WAN emulator did not answer: {error}") from error
        finally:
            writer.close()
        if answer.error:
            message, _, hint = answer.error.partition("\n  ")
            raise LabError(message, hint=hint)
        return answer

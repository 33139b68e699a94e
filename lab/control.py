"""Play with a lab that is up: `tradewind lab ps | kill | start` talk to it over a local socket.

One line of JSON asks, one line answers; the socket lies in the lab's folder, for its owner alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

from lab.errors import LabError
from runtime.errors import TradewindError

SOCKET = "control.sock"
_TIMEOUT_S = 60.0
_MAX_LINE_BYTES = 64 * 1024

Verb = Literal["ps", "kill", "start"]


class Order(msgspec.Struct, frozen=True):
    """What is asked of the lab. `name` is a process, or `etcd` for all its members."""

    verb: Verb
    name: str = ""


class ProcessState(msgspec.Struct, frozen=True):
    """One line of `tradewind lab ps`."""

    name: str
    pid: int
    running: bool
    memory_mb: float
    log: str


class Answer(msgspec.Struct, frozen=True):
    """What the lab says: `error` is empty when it was done."""

    error: str = ""
    processes: tuple[ProcessState, ...] = ()


Obey = Callable[[Order], Awaitable[Answer]]


async def serve(directory: Path, obey: Obey) -> asyncio.Server:
    """Listen for orders; `obey` carries them out, one at a time."""
    path = directory / SOCKET
    path.unlink(missing_ok=True)
    turn = asyncio.Lock()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT_S)
            async with turn:
                answer = await _carry_out(line, obey)
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        except (OSError, TimeoutError, ValueError):
            return  # whoever asked has gone, or sent a line without end
        finally:
            writer.close()

    server = await asyncio.start_unix_server(talk, path, limit=_MAX_LINE_BYTES)
    path.chmod(0o600)
    return server


async def _carry_out(line: bytes, obey: Obey) -> Answer:
    try:
        return await obey(msgspec.json.decode(line, type=Order))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Answer(error=f"not an order: {error}")
    except TradewindError as error:
        return Answer(error=str(error))


async def send(directory: Path, order: Order) -> Answer:
    """Ask the lab that runs in `directory`."""
    try:
        reader, writer = await asyncio.open_unix_connection(
            directory / SOCKET, limit=_MAX_LINE_BYTES
        )
    except OSError as error:
        raise LabError(
            f"no lab is up in {directory}", hint="start one with `tradewind lab --serve`"
        ) from error
    try:
        writer.write(msgspec.json.encode(order) + b"\n")
        line = await asyncio.wait_for(reader.readline(), _TIMEOUT_S)
        answer = msgspec.json.decode(line, type=Answer)
    except (OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
        raise LabError(f"the lab did not answer: {error}") from error
    finally:
        writer.close()
    if answer.error:
        raise LabError(answer.error)
    return answer

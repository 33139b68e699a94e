"""A child that answers DNS and does nothing else: `python -m control_plane.geodns.worker`.

It is started by `Workers` only; see there for what travels over its standard streams.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import BinaryIO

import msgspec
import uvloop

from control_plane.geodns.answers import Answerer
from control_plane.geodns.figures import figures_of
from control_plane.geodns.lookup import View
from control_plane.geodns.places import open_locator
from control_plane.geodns.server import DnsServer
from control_plane.geodns.settings import DnsSettings
from control_plane.geodns.workers import Feed, Start, frame, read_frame
from runtime import logs
from runtime.errors import TradewindError
from runtime.validation import convert
from topology.snapshot import Snapshot

REPORT_S = 1.0


async def serve(reader: asyncio.StreamReader, out: BinaryIO) -> None:
    """Answer until the reader ends."""
    body = await read_frame(reader)
    if body is None:
        return
    start = msgspec.msgpack.decode(body, type=Start)
    settings = convert(msgspec.json.decode(start.settings), DnsSettings, "the parent's settings")
    logs.configure(f"{settings.node_id}:{os.getpid()}", settings.log_level)
    locator = open_locator(settings.prefix_table, settings.mmdb, settings.prefixes)
    answerer = Answerer(locator, settings.answers)
    server = DnsServer(answerer, start.listen, settings.server, share_port=True)
    await server.start()
    reporting = asyncio.create_task(_report(answerer, server, out), name="report")
    try:
        while (body := await read_frame(reader)) is not None:
            _take(answerer, msgspec.msgpack.decode(body, type=Feed))
    finally:
        reporting.cancel()
        await server.close()


def _take(answerer: Answerer, feed: Feed) -> None:
    if feed.snapshot is not None:
        snapshot = Snapshot.decode(feed.snapshot, "the parent's snapshot")
        answerer.replace(View.of(snapshot, feed.healthy))
    elif answerer.view is not None:
        answerer.replace(answerer.view.with_health(feed.healthy))


async def _report(answerer: Answerer, server: DnsServer, out: BinaryIO) -> None:
    while True:
        await asyncio.sleep(REPORT_S)
        out.write(frame(figures_of(answerer, server)))
        out.flush()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the parent says when
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await serve(reader, sys.stdout.buffer)


def main() -> int:
    try:
        uvloop.run(_main())
    except TradewindError as error:
        sys.stderr.write(f"DNS worker: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Many subscribers in one process, for `benchmarks.propagation`: the load generator.

Each subscriber is a node of its own id on a TCP and TLS connection of its own, as real nodes are,
and speaks gRPC through grpcio. It does not decode what it gets beyond the response's envelope:
what nodes do with a snapshot is their own affair and CPU. The parent writes commands to stdin,
one a line, and reads answers as JSON from stdout.

    join                 connect all of them; answers when each has acknowledged something
    leave                drop all connections
    wait REVISION SECONDS  answers when each has acknowledged REVISION (etcd: received it), with
                         the monotonic time of each
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from etcd3 import etcdrpc

from control_plane.pki import identity_files
from control_plane.store.etcd_watch import range_of
from runtime.identity import Identity
from topology.wire import codec
from topology.wire.channel import open_channel
from topology.wire.subscription import Subscription

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
WATCHED = "/tradewind/v1-benchmark/"  # beside the resources: the replica does not see it
WATCH = "/etcdserverpb.Watch/Watch"
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]


class Subscriber:
    """Keeps a stream open, acknowledges what comes, and notes when."""

    def __init__(self, node_id: str, endpoint: str, identity: Identity) -> None:
        self.node_id = node_id
        self.held = 0
        self.at_s = 0.0
        self.attempts = 0
        self.refusals: list[str] = []
        self.changed = asyncio.Event()
        self._endpoint = endpoint
        self._identity = identity
        self._task: asyncio.Task[None] | None = None

    def join(self) -> None:
        self.held = 0
        self._task = asyncio.create_task(self._run())

    async def leave(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = 0.1
        while True:
            self.attempts += 1
            try:
                async with open_channel(self._endpoint, self._identity) as channel:
                    await self._follow(channel)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                told = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                self.refusals.append(str(told)[:80])
            await asyncio.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(ADS)()
        await call.write(Subscription(self.node_id).open().SerializeToString())
        while (data := await call.read()) is not _EOF:
            response = discovery.DeltaDiscoveryResponse.FromString(data)
            answer = discovery.DeltaDiscoveryRequest(
                type_url=response.type_url, response_nonce=response.nonce
            )
            await call.write(answer.SerializeToString())
            if response.type_url == codec.TYPE_URL:
                self._note(int(response.system_version_info))

    def _note(self, revision: int) -> None:
        self.at_s = time.monotonic()
        self.held = revision
        self.changed.set()

    async def holds(self, revision: int) -> float:
        """When it came to hold `revision`, or a later one."""
        while self.held < max(revision, 1):
            self.changed.clear()
            await self.changed.wait()
        return self.at_s


class Watcher(Subscriber):
    """The same with etcd's own watch."""

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(WATCH)()
        start, end = range_of(WATCHED)
        create = etcdrpc.WatchCreateRequest(key=start, range_end=end)
        await call.write(etcdrpc.WatchRequest(create_request=create).SerializeToString())
        while (data := await call.read()) is not _EOF:
            self._note(etcdrpc.WatchResponse.FromString(data).header.revision)


async def obey(subscribers: list[Subscriber]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, *words = line.decode().split()
        match command:
            case "join":
                began_s = time.monotonic()
                for subscriber in subscribers:
                    subscriber.join()
                answer = await wait(subscribers, 1, float(words[0]))
                answer["began_s"] = began_s
            case "leave":
                await asyncio.gather(*(s.leave() for s in subscribers))
                answer = {}
            case _:
                answer = await wait(subscribers, int(words[0]), float(words[1]))
        print(json.dumps(answer), flush=True)


async def wait(subscribers: list[Subscriber], revision: int, timeout_s: float) -> dict[str, Any]:
    late = 0
    try:
        async with asyncio.timeout(timeout_s):
            for subscriber in subscribers:
                await subscriber.holds(revision)
    except TimeoutError:
        late = sum(s.held < revision for s in subscribers)
    return {
        "at_s": [s.at_s for s in subscribers if s.held >= revision],
        "late": late,
        "attempts": sum(s.attempts for s in subscribers),
        "refusals": sorted({r for s in subscribers for r in s.refusals})[:5],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=["xds", "etcd"], required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--identity", type=Path, action="append", required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    identities = [Identity.load(identity_files(folder)) for folder in options.identity]
    one = Subscriber if options.kind == "xds" else Watcher

    async def run() -> None:
        subscribers = []
        for number in range(options.count):
            identity = identities[number % len(identities)]
            name = f"{identity.principal}/{number // len(identities)}"
            subscribers.append(one(name, options.endpoint, identity))
        await obey(subscribers)

    uvloop.run(run())


if __name__ == "__main__":
    main()

"""What a peer is: a proxy of somebody else's, in front of the same cores as our edges.

The storm and benchmarks give each peer the HTTP addresses of the cores and what its operator
would know of them; the peer says how it is started and what it is configured to do
(docs/storm-peers.md has the reasons). Nothing here measures anything.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from lab.supervisor import Child, Supervisor

CHAT = "/v1/chat/completions"
HOST = "127.0.0.1"
_READY_TIMEOUT_S = 150.0  # LiteLLM takes 15 s of CPU in each worker before it listens
_ASK_TIMEOUT_S = 5.0


class Cores(Struct, frozen=True, kw_only=True):
    """The cores behind a peer, and what somebody who runs them has measured.

    `slots` is how many sequences one core runs at once, `answer_s` how long an answer takes when
    all slots are in use, `capacity_rps` whole answers per second of all cores together,
    `deadline_s` what clients wait, `vip_keys` the API keys of paying customers.
    """

    addresses: tuple[str, ...]  # host:port, of the HTTP API
    model: str
    slots: int
    answer_s: float
    capacity_rps: float
    deadline_s: float
    vip_keys: tuple[str, ...] = ()

    @property
    def running(self) -> int:
        """Requests that all cores run at once."""
        return self.slots * len(self.addresses)

    @property
    def busy(self) -> int:
        """Requests inside the cores with which no slot is ever empty: a tenth more than run."""
        return ceil(1.1 * self.running)

    @property
    def in_time(self) -> int:
        """Requests, running and waiting, that can all be answered in time: by Little's law what
        the cores finish within half a deadline, and no fewer than keep them busy."""
        return max(self.busy, ceil(self.capacity_rps * self.deadline_s / 2))


class Launch(Struct, frozen=True, kw_only=True):
    """How one peer is started."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    settings: str  # what it is configured to do, in one line, for reports


class Peer(Protocol):
    """A proxy that can be put in front of the cores."""

    @property
    def name(self) -> str: ...

    @property
    def here(self) -> bool:
        """Whether it is installed, so that `launch` takes no time."""

    def launch(self, cores: Cores, port: int, folder: Path) -> Launch:
        """How to start it on 127.0.0.1:`port`; its files are written to `folder`. Installs it
        first where it is not (pip). Raises `PeerUnavailable`."""


class Running(Struct, frozen=True):
    """A peer that answers."""

    name: str
    url: str  # http://127.0.0.1:port
    settings: str
    child: Child


async def start(peer: Peer, cores: Cores, supervisor: Supervisor, folder: Path) -> Running:
    """Start `peer` and wait until a chat through it succeeds. The supervisor owns the process:
    it is ended by `supervisor.stop()` or `kill(peer.name)`. Raises `PeerUnavailable` when it
    cannot be installed, `ProcessDied` when it does not come up."""
    port = free_port()
    launch = await asyncio.to_thread(peer.launch, cores, port, folder)
    child = await supervisor.start(peer.name, launch.command, **launch.environment)
    key = cores.vip_keys[0] if cores.vip_keys else "none"
    await supervisor.until(
        f"{peer.name} on port {port}",
        lambda: asyncio.to_thread(answers, port, cores.model, key),
        _READY_TIMEOUT_S,
        peer.name,
    )
    return Running(peer.name, f"http://{HOST}:{port}", launch.settings, child)


def answers(port: int, model: str, key: str) -> bool:
    """Whether one short chat through 127.0.0.1:`port` succeeds."""
    message = {"role": "user", "content": "Is anybody there?"}
    body = {"model": model, "messages": [message], "max_tokens": 1}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    connection = http.client.HTTPConnection(HOST, port, timeout=_ASK_TIMEOUT_S)
    try:
        connection.request("POST", CHAT, json.dumps(body), headers)
        reply = connection.getresponse()
        return bool(reply.status == 200 and json.load(reply)["choices"])
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port

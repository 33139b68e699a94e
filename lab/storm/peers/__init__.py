"""Other people's proxies in front of our cores, each configured for overload.

    running = await start(PEERS["envoy"], cores, supervisor, folder)
    ... running.url ...                      # http://127.0.0.1:port, OpenAI's API
    await supervisor.kill(running.name)

docs/storm-peers.md says what each is told and why.
"""

from __future__ import annotations

from lab.storm.peers.base import Cores, Launch, Peer, Running, start
from lab.storm.peers.envoy import Envoy
from lab.storm.peers.litellm import LiteLLM
from lab.storm.peers.programs import PeerUnavailable
from lab.storm.peers.routers import SglangRouter, VllmRouter

PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (Envoy(), SglangRouter(), VllmRouter(), LiteLLM())
}

__all__ = ["PEERS", "Cores", "Launch", "Peer", "PeerUnavailable", "Running", "start"]

"""Asking an answerer as clients do, without sockets."""

from __future__ import annotations

import ipaddress
from typing import Any

import dns.edns
import dns.message

from control_plane.geodns.answers import Answerer, AnswerSettings
from control_plane.geodns.lookup import View
from tests.geodns.worlds import ALL, ZONE, snapshot, table, zone
from topology.snapshot import Snapshot

CHILD = zone("eu.sub.tradewind.test", names=[{"name": "@", "edges": ["*"], "answers": 1}])
SNAPSHOT = snapshot(CHILD)
CLIENT = "198.18.4.9"  # London


def answerer(
    held: Snapshot | None = None, healthy: frozenset[str] = ALL, **limits: int
) -> Answerer:
    made = Answerer(table(), AnswerSettings(**limits))
    made.replace(View.of(SNAPSHOT if held is None else held, healthy))
    return made


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def raw(made: Answerer, data: bytes, *, stream: bool = False, client: str = CLIENT) -> bytes | None:
    reply = made.reply(data, packed(client), stream=stream)
    return None if reply is None else data[:2] + reply.tail


def ask(
    name: str = f"api.{ZONE}", kind: str = "A", made: Answerer | None = None, **how: Any
) -> dns.message.Message:
    client = how.pop("client", CLIENT)
    stream = how.pop("stream", False)
    query = dns.message.make_query(name, kind, **how)
    data = raw(made or answerer(), query.to_wire(), stream=stream, client=client)
    assert data is not None
    answer = dns.message.from_wire(data)
    assert query.is_response(answer)
    return answer


def ecs(text: str, scope: int = 0) -> dns.edns.ECSOption:
    option = dns.edns.ECSOption.from_text(text)
    return dns.edns.ECSOption(option.address, option.srclen, scope)


class Cached:
    """Answers as the datagram endpoints do: from the packet cache where it can."""

    def __init__(self, made: Answerer) -> None:
        self.made = made

    def ask(self, data: bytes, client: str) -> bytes | None:
        hot = self.made.miss(data[2:], packed(client))
        return None if hot is None else data[:2] + hot[0]

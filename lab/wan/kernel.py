"""What the kernel dropped because we had not read what came before: /proc/net/udp (proc(5))."""

from __future__ import annotations

import socket
from pathlib import Path

_TABLE = Path("/proc/net/udp")


def unread() -> dict[tuple[str, int], int]:
    """(address, port) of each socket that has lost something -> datagrams; empty where this
    kernel does not say."""
    try:
        lines = _TABLE.read_text().splitlines()[1:]
    except OSError:
        return {}
    found = {}
    for fields in map(str.split, lines):
        drops = int(fields[-1])
        if drops:
            host, _, port = fields[1].partition(":")
            address = socket.inet_ntoa(int(host, 16).to_bytes(4, "little"))
            found[address, int(port, 16)] = drops
    return found

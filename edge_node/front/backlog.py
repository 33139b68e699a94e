"""How much of what was sent to a client it has not got yet.

Granian takes all that it is given and gives no back-pressure, so its buffer cannot be seen. What
the client has acknowledged can: Linux tells it of each TCP connection of this process
(sock_diag(7), `tcp_info.tcpi_bytes_acked`). The rest is on its way: in granian, in the kernel, or
in the network. With TLS or HTTP/2 a client has acknowledged more than this answer's bytes, so that
less seems to be on its way than is.
"""

from __future__ import annotations

import atexit
import ipaddress
import socket
import struct
from functools import cache
from typing import Any

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_INET_DIAG_INFO = 2
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBBBI2s2s16s16sIII")  # inet_diag_req_v2; ports in network order
_MESSAGE_BYTES = 72  # inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
_BYTES_ACKED_AT = 120  # in tcp_info
_ANY = 0xFFFFFFFF
_ANSWER_BYTES = 4096


def acknowledged(scope: Any) -> int | None:
    """Bytes that the client behind an RSGI scope has acknowledged since it connected; None where
    the kernel does not tell. Takes two system calls, and never waits."""
    kernel = _kernel()
    if kernel is None:
        return None
    try:
        kernel.send(_question(scope.server, scope.client))
        return _answer(kernel.recv(_ANSWER_BYTES))
    except (OSError, ValueError, struct.error):
        return None


@cache
def _kernel() -> socket.socket | None:
    """One socket for the process, as long as it lives. It answers before `send` returns."""
    try:
        kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    except (AttributeError, OSError):  # not Linux, or a sandbox
        return None
    kernel.setblocking(False)
    atexit.register(kernel.close)
    return kernel


def _question(local: str, remote: str) -> bytes:
    """`local` and `remote` are "address:port"."""
    (here, here_port), (there, there_port) = _split(local), _split(remote)
    family = socket.AF_INET if len(here) == 4 else socket.AF_INET6
    request = _REQUEST.pack(
        family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0, _ANY,
        here_port, there_port, here, there, 0, _ANY, _ANY,
    )  # fmt: skip
    size = _HEADER.size + len(request)
    return _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + request


def _split(address: str) -> tuple[bytes, bytes]:
    host, _, port = address.rpartition(":")
    return ipaddress.ip_address(host.strip("[]")).packed, int(port).to_bytes(2, "big")


def _answer(data: bytes) -> int | None:
    kind = _HEADER.unpack_from(data)[1]
    if kind != _SOCK_DIAG_BY_FAMILY:  # an error: the connection is gone
        return None
    at = _HEADER.size + _MESSAGE_BYTES
    while at + _ATTRIBUTE.size <= len(data):
        size, name = _ATTRIBUTE.unpack_from(data, at)
        if name == _INET_DIAG_INFO and size >= _ATTRIBUTE.size + _BYTES_ACKED_AT + 8:
            start = at + _ATTRIBUTE.size + _BYTES_ACKED_AT
            return int.from_bytes(data[start : start + 8], "little")
        at += max(4, (size + 3) & ~3)
    return None

"""recvmmsg(2) and sendmmsg(2): many datagrams in one system call.

Python has neither, so they are called through ctypes. All slots lie in two fixed blocks of
memory, and an answer is written over its query: the ID is then in place already, and the
source address is still where sendmmsg(2) wants the destination, without Python ever reading it.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import sys
from array import array
from typing import Any, Final

SLOT_BYTES: Final = 2048  # a longer query is cut, and then malformed
_NAME_BYTES: Final = 32  # sockaddr_in is 16, sockaddr_in6 28
_CONTROL_BYTES: Final = 64  # in_pktinfo takes 28, in6_pktinfo 36
_NAME_LENGTH: Final = {socket.AF_INET: 16, socket.AF_INET6: 28}
ADDRESS_AT: Final = {socket.AF_INET: (4, 8), socket.AF_INET6: (8, 24)}  # inside a sockaddr

_IP_PKTINFO: Final = 8  # linux/in.h; the socket module does not name it before Python 3.12


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


def _library() -> Any:
    """libc, holding the GIL: the calls never block, and there is nobody to give it to."""
    if sys.platform != "linux":
        return None
    library = ctypes.PyDLL(None, use_errno=True)
    if not hasattr(library, "recvmmsg") or not hasattr(library, "sendmmsg"):
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.recvmmsg.argtypes = (number, pointer, ctypes.c_uint, number, pointer)
    library.sendmmsg.argtypes = (number, pointer, ctypes.c_uint, number)
    return library


_LIBC: Final = _library()
AVAILABLE: Final = _LIBC is not None


def _address_of(block: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(block)).from_buffer(block))


class Batch:
    """Slots for `size` datagrams on one non-blocking socket.

    After `receive()` returned n, `lengths(n)` are their sizes, and datagram i lies in
    `data[i * SLOT_BYTES:]`. Write its answer there, its size into `reply_lengths[2 * i + 1]`
    (0: none), and call `send(n)`.

    On a socket bound to all addresses, the answer leaves from the address that the query was
    sent to: the packet information that came with the query is handed back with its answer.
    """

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._fd = sock.fileno()
        self._size = size
        self._data = bytearray(size * SLOT_BYTES)
        self._names = bytearray(size * _NAME_BYTES)
        self._control = bytearray(size * _CONTROL_BYTES)
        self._vectors = (_Vector * size)()
        self._messages = (_Message * size)()
        self._name_length = _NAME_LENGTH[sock.family]
        self._wildcard = sock.getsockname()[0] in ("0.0.0.0", "::")
        if self._wildcard:
            _ask_for_packet_information(sock)
        self.data = memoryview(self._data)
        self.names = memoryview(self._names)
        self.reply_lengths = memoryview(self._vectors).cast("B").cast("L")
        self._lengths = memoryview(self._messages).cast("B").cast("I")
        words, word = memoryview(self._messages).cast("B").cast("L"), ctypes.sizeof(ctypes.c_size_t)
        control_length_at = _Message.header.offset + _Header.control_length.offset
        self._control_lengths = words[control_length_at // word :: ctypes.sizeof(_Message) // word]
        self._control_bytes = memoryview(array("L", [_CONTROL_BYTES] * size))
        self._slot_bytes = memoryview(array("L", [SLOT_BYTES] * size))
        self._stride = ctypes.sizeof(_Message) // 4
        self._length_at = _Message.length.offset // 4
        self._pointer = ctypes.addressof(self._messages)
        self._link()
        self.dropped = 0  # answers that the kernel did not take

    def _link(self) -> None:
        data, names = _address_of(self._data), _address_of(self._names)
        control, vectors = _address_of(self._control), ctypes.addressof(self._vectors)
        for index in range(self._size):
            self._vectors[index].base = data + index * SLOT_BYTES
            self._vectors[index].length = SLOT_BYTES
            header = self._messages[index].header
            header.name = names + index * _NAME_BYTES
            header.name_length = self._name_length
            header.vectors = vectors + index * ctypes.sizeof(_Vector)
            header.vector_count = 1
            if self._wildcard:
                header.control = control + index * _CONTROL_BYTES
                header.control_length = _CONTROL_BYTES

    def receive(self) -> int:
        """How many datagrams came; 0 when none is waiting. Errors of the socket read as none."""
        count: int = _LIBC.recvmmsg(self._fd, self._pointer, self._size, 0, None)
        return max(0, count)

    def lengths(self, count: int) -> list[int]:
        at = self._length_at
        return self._lengths[at : at + self._stride * count : self._stride].tolist()

    def send(self, count: int) -> None:
        """Send every answer of the last `count` datagrams, and make the slots ready again."""
        if self._wildcard:
            self._forget_interfaces(count)
        at = 0
        while at < count:
            end = at
            while end < count and self.reply_lengths[2 * end + 1]:
                end += 1
            if end > at:
                self._send_run(at, end)
            at = end + 1
        self.reply_lengths[1 : 2 * count : 2] = self._slot_bytes[:count]
        if self._wildcard:
            self._control_lengths[:count] = self._control_bytes[:count]

    def _send_run(self, at: int, end: int) -> None:
        while at < end:
            pointer = self._pointer + at * ctypes.sizeof(_Message)
            sent = _LIBC.sendmmsg(self._fd, pointer, end - at, 0)
            if sent > 0:
                at += sent
            elif ctypes.get_errno() in (errno.EAGAIN, errno.ENOBUFS):
                self.dropped += end - at  # the client asks again
                return
            else:
                self.dropped += 1  # this one cannot be sent (its port is 0, no route)
                at += 1

    def _forget_interfaces(self, count: int) -> None:
        """Keep the local address of the packet information, not the interface: the way back
        may be another one."""
        family_v4 = self._name_length == _NAME_LENGTH[socket.AF_INET]
        at = 16 if family_v4 else 32  # behind cmsghdr, and behind the address of in6_pktinfo
        for offset in range(at, count * _CONTROL_BYTES, _CONTROL_BYTES):
            self._control[offset : offset + 4] = b"\0\0\0\0"


def _ask_for_packet_information(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

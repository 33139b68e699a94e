"""How long a DNS server takes to answer while other things happen on the machine.

with Questions(port) as questions: …    # 100 a second from a thread; .answers, .lost
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import dns.message
import msgspec

PER_S = 100
TIMEOUT_S = 2.0


class Answer(msgspec.Struct, frozen=True):
    asked_s: float  # monotonic
    took_s: float


class Questions:
    """Asks for `name` A over UDP, one question at a time on its own schedule."""

    def __init__(self, port: int, name: str) -> None:
        self.answers: list[Answer] = []
        self.lost = 0
        self._address = ("127.0.0.1", port)
        self._query = dns.message.make_query(name, "A").to_wire()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Questions:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, start_s: float, end_s: float) -> list[float]:
        return [a.took_s for a in self.answers if start_s <= a.asked_s < end_s]

    def _run(self) -> None:
        due_s = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(self._address)
            sock.settimeout(TIMEOUT_S)
            number = 0
            while not self._stop.wait(max(0.0, due_s - time.monotonic())):
                due_s = max(due_s + 1 / PER_S, time.monotonic())
                number = (number + 1) % 65536
                self._ask(sock, struct.pack(">H", number))

    def _ask(self, sock: socket.socket, number: bytes) -> None:
        asked_s = time.monotonic()
        with contextlib.suppress(OSError):
            sock.send(number + self._query[2:])
            while sock.recv(4096)[:2] != number:
                pass
            self.answers.append(Answer(asked_s, time.monotonic() - asked_s))
            return
        if self.answers:  # else it is still starting
            self.lost += 1

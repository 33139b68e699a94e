"""A hit on disk: our edge after a restart, against nginx's `proxy_cache` after one.

    python -m benchmarks.disk_cache [--json FILE] [--runs 3] [--questions 1000]

One client on one connection asks one question after another, each once, of a server that has just
been started on the answers that an earlier one has left: each is found on disk. Then all of them
again: ours has them in memory by now, nginx's lie in the kernel's page cache, as they did the
first time. The figure is the median time from sending a request to having its reply, client and
loopback included. The files were written a moment before, so no disk is read: a cold disk adds its
own time to each of both.
"""

from __future__ import annotations

import re
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.cache import start_nginx
from benchmarks.edge_process import KEY, PATH, Site, question
from benchmarks.harness import BENCH, Process, Report, Sample, arguments, free_port, say

_HEADER = re.compile(rb"\r\n([^:]+): ?([^\r]*)")
LIMIT_US = 300.0  # what a hit on disk may take


def bodies(count: int) -> list[bytes]:
    return [question(temperature=0, seed=number) for number in range(count)]


class Client:
    """One connection, which spends as little as it can itself."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = (
            f"POST {PATH} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()

    def ask(self, body: bytes) -> tuple[float, str]:
        """Seconds until the reply is here, and where it came from."""
        request = self._head + str(len(body)).encode() + b"\r\n\r\n" + body
        started = time.perf_counter()
        self._socket.sendall(request)
        reply = self._socket.recv(65536)
        while b"\r\n\r\n" not in reply:
            reply += self._socket.recv(65536)
        head, _, rest = reply.partition(b"\r\n\r\n")
        headers = dict(_HEADER.findall(head.lower()))
        left = int(headers[b"content-length"]) - len(rest)
        while left > 0:
            left -= len(self._socket.recv(65536))
        took_s = time.perf_counter() - started
        assert head.startswith(b"HTTP/1.1 200"), head
        found = headers.get(b"x-tradewind-cache") or headers.get(b"x-cache") or b""
        return took_s, found.decode()

    def close(self) -> None:
        self._socket.close()


def asked(process: Process, port: int, questions: Sequence[bytes], source: str) -> Sample:
    """Each question once; all of them must come from `source`."""
    client, before = Client(port), process.cpu_s()
    found = [client.ask(body) for body in questions]
    client.close()
    used_s = process.cpu_s() - before
    wrong = [where for _, where in found if where != source]
    assert not wrong, f"{process.name}: {len(wrong)} of {len(found)} from elsewhere: {wrong[:3]}"
    times_us = sorted(took_s * 1e6 for took_s, _ in found)
    notes = {
        "p99_us": times_us[int(0.99 * len(times_us))],
        "cpu_us": used_s / len(found) * 1e6,
    }
    return Sample(statistics.median(times_us), notes=notes)


def fill(port: int, questions: Sequence[bytes]) -> None:
    client = Client(port)
    for body in questions:
        client.ask(body)
    client.close()


def until_written(site: Site, questions: Sequence[bytes]) -> None:
    """Wait for the last to be on disk: an edge writes them by and by, and when it is stopped."""
    file = site.directory / "state" / "cache" / "answers-1" / "data.mdb"
    end = time.monotonic() + 10
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert file.exists()


Turns = dict[str, list[Sample]]


def turn(
    name: str,
    start: Callable[[], Process],
    port: int,
    questions: Sequence[bytes],
    sources: tuple[str, str],
    once: Turns,
    again: Turns,
) -> None:
    """One restart of one side."""
    with start() as process:
        once.setdefault(name, []).append(asked(process, port, questions, sources[0]))
        again.setdefault(name, []).append(asked(process, port, questions, sources[1]))
    for when, taken in (("disk", once), ("again", again)):
        sample = taken[name][-1]
        notes = ", ".join(f"{key} {value:.0f}" for key, value in sample.notes.items())
        say(f"  {name:<6} {when:<6} p50 {sample.value:,.0f} us, {notes}")


def main() -> None:
    parser = arguments(__doc__ or "", runs=3)
    parser.add_argument("--questions", type=int, default=1000)
    options = parser.parse_args()
    questions = bodies(options.questions)
    with ExitStack() as stack:
        BENCH.mkdir(exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="disk-cache-", dir=BENCH)
        folder = Path(stack.enter_context(temporary))
        site, nginx_port = Site(folder), free_port()
        stack.enter_context(site.start_core())  # without a region an edge is not ready
        with site.start_edge():
            time.sleep(1.0)  # its cache on disk is opened beside serving
            fill(site.http_port, questions)
            until_written(site, questions)
        answer = b'{"choices": [{"message": {"content": "' + b"x" * 300 + b'"}}]}'
        nginx_folder = folder / "nginx"

        def start_edge() -> Process:
            process = site.start_edge()
            time.sleep(1.0)
            return process

        def start_peer() -> Process:
            return start_nginx(nginx_folder, nginx_port, answer)

        with start_peer():
            fill(nginx_port, questions)
        once: Turns = {}
        again: Turns = {}
        for _ in range(options.runs):
            turn("ours", start_edge, site.http_port, questions, ("disk", "memory"), once, again)
            turn("nginx", start_peer, nginx_port, questions, ("hit", "hit"), once, again)
        report = Report("disk cache", unit="us", lower_is_better=True)
        report.add("each once after a restart", once)
        report.add("each again", again)
        worst = max(sample.value for sample in once["ours"])
        report.note(f"ours, from disk: {worst:.0f} us at worst; the limit is {LIMIT_US:.0f} us")
        report.finish(options.json)


if __name__ == "__main__":
    main()

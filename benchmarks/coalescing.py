"""Many clients with one question at once: how many requests go upstream, and what each costs.

    python -m benchmarks.coalescing [--clients 10000] [--json FILE] [--runs 1]

Ours is clients -> edge (one worker) -> QUIC with mutual TLS -> core, whose simulated engine takes
about eight seconds for the answer, token by token. The peer is the same clients -> nginx (one
worker, `proxy_cache_lock on`) -> a back end that takes as long. The question is another one each
time, so that no answer is there already. Each client has a connection of its own, and must get the
whole answer, the same as all others.

`tail_s` is from the first client's last byte to the last one's, `start_s` from the first request
to the median client's first byte. CPU and memory are the edge's or nginx's, for each client.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.cache import NGINX
from benchmarks.edge_process import Site, question
from benchmarks.harness import (
    BENCH,
    Process,
    Report,
    Sample,
    Unavailable,
    arguments,
    ensure_debian,
    free_port,
    run_generator,
    say,
    take_turns,
)

TOKENS = 56  # about what the simulated engine has to say
STEP_MS = 150.0


class BackEnd:
    """Answers as slowly as the core does, and counts."""

    def __init__(self) -> None:
        self.requests = 0
        self.port = free_port()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, "127.0.0.1", self.port, backlog=4096)
        await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        stream = json.loads(await reader.readexactly(length)).get("stream", False)
        kind = "text/event-stream" if stream else "application/json"
        writer.write(f"HTTP/1.0 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode())
        for _ in range(TOKENS):
            await asyncio.sleep(STEP_MS / 1000)
            if stream:
                writer.write(_event(" word"))
        writer.write(b"data: [DONE]\n\n" if stream else _whole(" word" * TOKENS))
        await writer.drain()
        writer.close()


def _event(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _whole(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "chatcmpl-1", "choices": [choice]}).encode()


def start_nginx(folder: Path, port: int, backend: int) -> Process:
    """nginx, with which requests for what is being fetched wait for it."""
    ensure_debian(["nginx"])
    folder.mkdir(parents=True)
    lock = "proxy_cache_lock on; proxy_cache_lock_timeout 60s; proxy_cache_lock_age 60s;"
    configuration = folder / "nginx.conf"
    text = NGINX.format(user="user root;", folder=folder, port=port, backend=backend)
    text = text.replace("worker_connections 4096", "worker_connections 60000")
    text = text.replace("worker_processes 1;", "worker_processes 1; worker_rlimit_nofile 60000;")
    text = text.replace("proxy_cache answers;", f"proxy_cache answers; {lock}")
    configuration.write_text(text.replace("backlog=1024", "backlog=4096"))
    command = ["/usr/sbin/nginx", "-c", str(configuration), "-e", str(folder / "error.log")]
    process = Process("nginx-lock", command)
    process.wait_for_port(port)
    return process


def attempts(port: int) -> int:
    """Requests that the edge has sent to regions."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith("tradewind_edge_attempts_total "):
                return int(float(line.split()[1]))
    raise Unavailable("the edge does not say what it sent")


def turn(
    process: Process, port: int, upstream: Callable[[], int], body: Path, options: Any, stream: bool
) -> Sample:
    nonce = int(time.time() * 1e6) % 2**31
    body.write_bytes(question(temperature=0, seed=nonce, max_tokens=TOKENS, stream=stream))
    before = upstream()
    command = [
        sys.executable, "-m", "benchmarks.crowd_client", str(port), str(body),
        "--clients", str(options.clients), "--watch", f"server={process.pid}",
    ]  # fmt: skip
    ran = run_generator(command)
    found = json.loads(ran.out.splitlines()[-1])
    notes = {
        "whole": float(found["whole"]),
        "answers": float(found["answers"]),
        "upstream": float(upstream() - before),
        "waited_all": float(found["waiting"]),
        "asked_s": found["asked_s"],
        "start_s": found["p50_start_s"],
        "first_end_s": found["first_end_s"],
        "tail_s": found["last_end_s"] - found["first_end_s"],
        "cpu_us": found["cpu_s"]["server"] / options.clients * 1e6,
        "kib": found["mib"]["server"] / options.clients * 1024,
    }
    say(f"    {process.name}: " + ", ".join(f"{k} {v:.2f}" for k, v in notes.items()))
    return Sample(
        notes["cpu_us"], server_cores=found["cpu_s"]["server"] / ran.wall_s,
        generator_cores=ran.cores, notes=notes,
    )  # fmt: skip


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--clients", type=int, default=10_000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < options.clients + 200:
        raise Unavailable(f"{options.clients} clients need more than {hard} open files each side")
    with ExitStack() as stack:
        BENCH.mkdir(exist_ok=True)
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="coalescing-", dir=BENCH))
        )
        policy = {("Policy", "default"): {"retries": {"hedge": False}}}
        site = Site(folder, specs=policy)
        sim = {"step_ms": STEP_MS, "step_ms_per_sequence": 0.0}
        stack.enter_context(site.start_core(sim=sim))
        edge = stack.enter_context(site.start_edge(max_connections=options.clients + 100))
        backend, port = BackEnd(), free_port()
        nginx = stack.enter_context(start_nginx(folder / "nginx", port, backend.port))
        report = Report("coalescing", unit="us/client", lower_is_better=True)
        for stream in (False, True):

            def ours(stream: bool = stream) -> Sample:
                return turn(
                    edge, site.http_port, lambda: attempts(site.http_port), folder / "body",
                    options, stream,
                )  # fmt: skip

            def peer(stream: bool = stream) -> Sample:
                return turn(nginx, port, lambda: backend.requests, folder / "body", options, stream)

            sides = {"ours": ours, "nginx proxy_cache_lock": peer}
            form = "streamed" if stream else "whole"
            report.add(f"{options.clients} clients, {form}", take_turns(sides, options.runs))
        report.finish(options.json)


if __name__ == "__main__":
    main()

"""Forwarding: our edge and core over the encrypted overlay, against HTTP routers.

    python -m benchmarks.forward [--json FILE] [--runs 5] [--seconds 5] [--against CHECKOUT]

Ours is wrk -> edge (one worker) -> QUIC with mutual TLS -> core (simulated engine, no service
time). The peers are wrk -> router -> plain HTTP -> one fast granian worker that answers with
the same bytes as our core did. All processes share the machine's cores, wrk too, so what a
request costs each edge or router in CPU time is the steadier figure; it is in the notes.
`--against` measures another checkout of ours as one more side, `before`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.edge_process import PATH, Site, post, question, wrk
from benchmarks.harness import (
    BENCH,
    Process,
    Report,
    Sample,
    Unavailable,
    arguments,
    ensure_debian,
    ensure_venv,
    free_port,
    say,
    take_turns,
)

CONNECTIONS = (128, 32)  # the first gives the ratios
BODY = question(seed=7)  # the same answer each time


def start_vllm_router(backend: int) -> tuple[Process, int]:
    programs = ensure_venv("vllm-router", ["vllm-router==0.1.17"])
    return _start("vllm-router", [str(programs / "vllm-router")], backend, "round_robin", "error")


def start_sglang_router(backend: int) -> tuple[Process, int]:
    programs = ensure_venv("sglang-router", ["sglang-router==0.3.2"])
    command = [str(programs / "python"), "-m", "sglang_router.launch_router"]
    return _start("sglang-router", command, backend, "round_robin", "error")


def _start(
    name: str, command: list[str], backend: int, policy: str, level: str
) -> tuple[Process, int]:
    port = free_port()
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--worker-urls": f"http://127.0.0.1:{backend}",
        "--policy": policy,
        "--log-level": level,
        "--prometheus-port": str(free_port()),
        "--prometheus-host": "127.0.0.1",
        "--max-concurrent-requests": "4096",
    }
    process = Process(name, [*command, *(word for pair in options.items() for word in pair)])
    process.wait_until(lambda: _answers(port), timeout_s=60)
    return process, port


def _answers(port: int) -> bool:
    try:
        post(f"http://127.0.0.1:{port}{PATH}", BODY)
    except OSError:
        return False
    return True


def start_backend(folder: Path, answer: bytes) -> tuple[Process, int]:
    port = free_port()
    file = folder / "answer.json"
    file.write_bytes(answer)
    command = [sys.executable, "-m", "benchmarks.openai_backend", str(port), str(file)]
    process = Process("backend", command)
    process.wait_for_port(port)
    return process, port


def turn(process: Process, url: str, connections: int, seconds: float, folder: Path) -> Sample:
    before = process.cpu_s()
    load = wrk(url, BODY, connections=connections, seconds=seconds, script=folder / "wrk.lua")
    assert load.failures == 0, f"{process.name}: {load.failures} failures"
    used_s = process.cpu_s() - before
    notes = {
        "p50_ms": load.p50_ms,
        "p99_ms": load.p99_ms,
        "cpu_us": used_s / load.requests * 1e6,
        "rss_mib": process.rss_mib(),
    }
    say(f"    {process.name}: " + ", ".join(f"{name} {value:.2f}" for name, value in notes.items()))
    return Sample(
        load.per_s, server_cores=used_s / load.ran.wall_s, generator_cores=load.ran.cores,
        server_limit=2.0, notes=notes,
    )  # fmt: skip


def prove(url: str, answer: bytes, *, ours: bool) -> None:
    """Each side must give the answer that the load will get, through the region or back end."""
    found, headers = post(url, BODY)
    if not ours:
        assert found == answer, found
        return
    assert headers["x-tradewind-served-by"] == "region", headers
    told, expected = json.loads(found), json.loads(answer)
    for part in ("choices", "usage", "model"):
        assert told[part] == expected[part], told


def start_ours(stack: ExitStack, folder: Path, **site: Any) -> tuple[Process, str]:
    folder.mkdir()
    ours = Site(folder, cache_ttl_s=0, **site)
    stack.enter_context(ours.start_core())
    return stack.enter_context(ours.start_edge()), ours.url


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version of ours")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    options = parser.parse_args()
    ensure_debian(["wrk"])
    report = Report("forward", unit="req/s")
    with ExitStack() as stack:
        BENCH.mkdir(exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix="forward-", dir=BENCH)
        folder = Path(stack.enter_context(temporary))
        urls = {"ours": start_ours(stack, folder / "ours")}
        if options.against is not None:
            other = {"code": options.against.resolve(), "name": "before-"}
            urls["before"] = start_ours(stack, folder / "before", **other)
        answer, _ = post(urls["ours"][1], BODY)
        for _, url in urls.values():
            prove(url, answer, ours=True)
        server, backend = start_backend(folder, answer)
        stack.enter_context(server)
        for name, start in [] if options.no_peers else PEERS.items():
            try:
                process, port = start(backend)
            except Unavailable as why:
                report.note(f"{name} is missing: {why}")
                continue
            stack.enter_context(process)
            urls[name] = (process, f"http://127.0.0.1:{port}{PATH}")
            prove(urls[name][1], answer, ours=False)
        for connections in CONNECTIONS:
            sides = {
                name: partial(turn, process, url, connections, options.seconds, folder)
                for name, (process, url) in urls.items()
            }
            report.add(f"{connections} connections", take_turns(sides, options.runs))
        report.finish(options.json)


PEERS: dict[str, Callable[[int], tuple[Process, int]]] = {
    "vllm-router": start_vllm_router,
    "sglang-router": start_sglang_router,
}

if __name__ == "__main__":
    main()

"""sglang-router and vllm-router: routers in Rust for engines that speak OpenAI's API.

Their options for overload have the same names: a bucket of requests in flight with a bounded
queue before it, retries with backoff, a circuit breaker per worker, health checks.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path

from lab.storm.peers.base import HOST, Cores, Launch, free_port
from lab.storm.peers.programs import install, installed


class SglangRouter:
    """sglang-router 0.3.2, the release before it was renamed to smg."""

    name = "sglang-router"
    packages = ("sglang-router==0.3.2",)

    @property
    def here(self) -> bool:
        return installed(self.name, self.packages) is not None

    def launch(self, cores: Cores, port: int, folder: Path) -> Launch:
        python = install(self.name, self.packages) / "python"
        start = (str(python), "-m", "sglang_router.launch_router", "--log-level", "error")
        return _launch(start, cores, port)


class VllmRouter:
    """vllm-router 0.1.17, which began as a copy of sglang-router."""

    name = "vllm-router"
    packages = ("vllm-router==0.1.17",)

    @property
    def here(self) -> bool:
        return installed(self.name, self.packages) is not None

    def launch(self, cores: Cores, port: int, folder: Path) -> Launch:
        program = install(self.name, self.packages) / "vllm-router"
        return _launch((str(program), "--log-level", "error"), cores, port)


def _launch(start: tuple[str, ...], cores: Cores, port: int) -> Launch:
    in_flight = cores.busy
    queue = cores.in_time
    options = {
        "--host": HOST,
        "--port": port,
        "--prometheus-host": HOST,
        "--prometheus-port": free_port(),
        "--policy": "power_of_two" if len(cores.addresses) > 1 else "round_robin",
        "--worker-startup-check-interval": 1,
        "--request-timeout-secs": ceil(cores.deadline_s),
        "--max-concurrent-requests": in_flight,
        "--queue-size": queue,
        "--queue-timeout-secs": max(1, round(cores.deadline_s / 2)),
        # The bucket of requests in flight gets back what has ended, and these besides; by default
        # as many as it holds, which is no limit at all.
        "--rate-limit-tokens-per-second": 1,
        "--retry-max-retries": 2,
        "--retry-initial-backoff-ms": 50,
        "--retry-max-backoff-ms": 1000,
        "--cb-failure-threshold": 30,
        "--cb-success-threshold": 1,
        "--cb-timeout-duration-secs": 2,
        "--cb-window-duration-secs": 10,
        "--health-check-endpoint": "/readyz",
        "--health-check-interval-secs": 2,
        "--health-check-timeout-secs": 2,
        "--health-failure-threshold": 2,
        "--health-success-threshold": 1,
    }
    words = (word for name, value in options.items() for word in (name, str(value)))
    urls = (f"http://{address}" for address in cores.addresses)
    settings = (
        f"power of two choices; {in_flight} in flight, {queue} queued for at most half of "
        "the deadline; 2 attempts after the first, with backoff; circuit breaker of 30 failures, "
        "2 s; health checks of /readyz every 2 s"
    )
    return Launch(command=(*start, *words, "--worker-urls", *urls), settings=settings)

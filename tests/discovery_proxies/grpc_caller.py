"""A gRPC client in a process of its own, since gRPC reads its xDS bootstrap once per process.

Run as `python -m tests.discovery_proxies.grpc_caller TARGET HEADERS`, with HEADERS in JSON. It
calls for ever, one call after the other, and every 50 ms prints a line of JSON: where calls
went and what failed since it began.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any

import grpc

ECHO = "/tradewind.test.Echo/Where"


_EVERY_S = 0.05
_FAILURES_MAX = 20


def main(target: str, headers: dict[str, str]) -> None:
    where: Counter[str] = Counter()
    failed: list[str] = []
    printed_s = 0.0
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(ECHO)  # type: ignore[call-arg]
        while True:
            try:
                where[call(b"", metadata=tuple(headers.items()), timeout=10).decode()] += 1
            except grpc.RpcError as error:
                failed.append(f"{error.code().name}: {error.details()}")
                time.sleep(_EVERY_S)
            if failed or time.monotonic() - printed_s > _EVERY_S:
                printed_s = time.monotonic()
                print(json.dumps({"where": where, "failed": failed[:_FAILURES_MAX]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

"""An HTTP back end for the routers that forwarding is compared with: one fast granian worker.

python -m benchmarks.openai_backend PORT FILE      # answers chats with the bytes in FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops
from granian.server import Server

from benchmarks.router_pages import PAGES

JSON = [("content-type", "application/json")]
ANSWER = Path(sys.argv[2]).read_bytes() if len(sys.argv) > 2 else b""


async def app(scope: Any, client: Any) -> None:
    if scope.method == "POST":
        await client()
        client.response_bytes(200, JSON, ANSWER)
    elif scope.path in PAGES:
        client.response_bytes(200, JSON, PAGES[scope.path])
    else:
        client.response_bytes(404, JSON, b"{}")


if __name__ == "__main__":
    Server(
        "benchmarks.openai_backend:app",
        address="127.0.0.1",
        port=int(sys.argv[1]),
        interface=Interfaces.RSGI,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
    ).serve()

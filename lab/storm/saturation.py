"""What the cores can do, measured before the storm: as many clients as they have slots, and half as
many again, each asking as soon as it was answered, none asking what was asked before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from lab.errors import LabError
from lab.storm.http_client import Pool
from lab.storm.population import PATH

WARM_S = 2.0
MEASURED_S = 6.0
_TIMEOUT_S = 60.0


async def capacity_rps(
    cores: Sequence[str],
    model: str,
    max_tokens: int,
    clients_each: int,
    warm_s: float = WARM_S,
    measured_s: float = MEASURED_S,
) -> float:
    """Whole answers a second of all `cores` (host:port of their HTTP API) together."""
    ended: list[float] = []
    pool = Pool(len(cores) * clients_each + 1)
    began_s = time.monotonic()

    async def keep_asking(core: str, number: int) -> None:
        count = 0
        while True:
            prompt = f"Question {number}.{count}, that nobody has asked before: what is it worth?"
            request = _request(core, model, prompt, max_tokens)
            reply = await pool.ask(f"http://{core}", request, _TIMEOUT_S)
            count += 1
            if reply.status == 200:
                ended.append(reply.done_s)
            else:
                await asyncio.sleep(0.02)  # refused: there are more clients than it takes

    tasks = [
        asyncio.create_task(keep_asking(core, index * clients_each + number))
        for index, core in enumerate(cores)
        for number in range(clients_each)
    ]
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=warm_s + measured_s, return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        pool.close()
    from_s = began_s + warm_s
    count = sum(from_s <= at_s < from_s + measured_s for at_s in ended)
    if not count:
        raise LabError("the cores answered nothing while their capacity was measured")
    return round(count / measured_s, 2)


def _request(core: str, model: str, prompt: str, max_tokens: int) -> bytes:
    body = msgspec.json.encode(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
        }
    )
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: {core}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body

"""The regional tier of a whole core: over the overlay, over HTTP, and turned off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.region_core.cores import MODEL, RunningCore, frame
from tests.region_core.test_overlay_ingress import body, ids, read, text
from tests.topology.worlds import document, region
from topology.overlay.frames import End
from topology.resources import parse
from topology.snapshot import Snapshot


def config(**cache: Any) -> Snapshot:
    documents = [
        region("frankfurt", "EU"),
        document("Model", MODEL, regions=["frankfurt"], context_tokens=2048),
        document("Policy", "default", **cache),
    ]
    return Snapshot.build(1, [parse(raw, "test") for raw in documents])


async def test_over_the_overlay(tmp_path: Path) -> None:
    async with RunningCore(tmp_path / "pki") as running:
        running.core._use(config())

        async def asked(**changes: Any) -> tuple[list[Any], End]:
            frames = await read(running.tunnel.open(frame(**changes), body(max_tokens=9)))
            assert isinstance(frames[-1], End)
            return frames, frames[-1]

        first, end = await asked()
        assert not end.cached
        again, end = await asked()
        assert end.cached and 0 <= end.age_s < 60
        assert (ids(again), text(again)) == (ids(first), text(first))
        assert (await asked(reuse=False))[1].cached is False
        assert (await asked(tenant="another"))[1].cached is False
        rest, end = await asked(resume_tokens=tuple(ids(first)[:4]))
        assert end.cached and ids(rest) == ids(first)[4:]
        running.core._use(config(cache={"epoch": 1}))
        assert (await asked())[1].cached is False
        running.core._use(config(overload={"protect": False}))
        assert (await asked())[1].cached is False
        metrics = running.core.metrics.expose().decode()
        assert "tradewind_core_answers_hits_total 2.0" in metrics


@pytest.mark.parametrize("anonymous", [False, True])
async def test_over_http(tmp_path: Path, anonymous: bool) -> None:
    answers = {"anonymous": anonymous}
    async with RunningCore(tmp_path / "pki", answers=answers) as running:
        running.core._use(config())
        assert running.core.service.answers is not None
        asked = json.loads(body(max_tokens=9))
        url = running.url + "/v1/chat/completions"
        async with httpx.AsyncClient() as client:
            texts = [
                (await client.post(url, json=asked, headers=headers)).json()["choices"]
                for headers in (
                    {},
                    {},
                    {"cache-control": "no-cache"},
                    {"cache-control": "no-store"},
                )
            ]
        assert all(found == texts[0] for found in texts)
        assert running.core.service.answers.hits == (1 if anonymous else 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"answers": {"enabled": False}},
        {"sim": {"instant": True}},
        {"scheduling": {"protect": False}},
    ],
)
async def test_it_can_be_turned_off(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with RunningCore(tmp_path / "pki", **changes) as running:
        running.core._use(config())
        assert running.core.service.answers is None

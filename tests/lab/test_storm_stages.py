"""What a storm does around its runs, without a world."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.control import Order
from lab.errors import ProcessDied
from lab.storm import peers, stage
from lab.storm.event import Event, Population
from lab.storm.run import Watcher
from lab.storm.stages import Storm, Wanted


class Started:
    """A lab that was told what to start and to kill."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.world = stage.world(Event(), Population(), stage.Engine(), True, 16)
        self.keys = {tenant.name: "key" for tenant in self.world.tenants}
        self.supervisor = self
        self.children = {"envoy": SimpleNamespace(pid=1)}
        self.told: list[tuple[str, str]] = []

    async def kill(self, name: str) -> None:
        self.told.append(("kill", name))

    async def obey(self, order: Order) -> None:
        self.told.append((order.verb, order.name))

    async def until(self, what: str, *_: object) -> None:
        self.told.append(("awaited", what))


def a_storm(folder: Path) -> Any:
    found: Any = Storm(Wanted(directory=folder, event=Event(), population=Population()), Watcher())
    found._capacity = 50.0
    return found


async def test_a_peer_that_does_not_come_up_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object) -> None:
        raise ProcessDied("envoy ended with status 1")

    monkeypatch.setattr(peers, "start", dies)
    held, lab = a_storm(tmp_path), Started(tmp_path)
    await held._through(lab, "envoy")
    assert held.report().left_out == {"envoy": "envoy ended with status 1"}
    assert not held.runs
    assert lab.told == [("kill", "envoy")], "it may still be coming up"


async def test_what_one_run_killed_is_there_for_the_next(tmp_path: Path) -> None:
    held, lab = a_storm(tmp_path), Started(tmp_path)
    held._killed = "core-dubai"
    await held._revive(lab)
    await held._revive(lab)
    assert lab.told[0] == ("start", "core-dubai")
    assert sorted(lab.told[1:]) == [
        ("awaited", f"core {name}") for name in ("dubai", "frankfurt", "singapore")
    ]


async def test_a_capacity_that_was_measured_on_a_busy_machine_is_told(tmp_path: Path) -> None:
    held = a_storm(tmp_path)
    nominal = stage.nominal_rps(stage.Engine(), 16)
    held._capacity = 0.9 * nominal
    assert "measured as 90%" in held._slower()
    held._capacity = nominal
    assert not held._slower()

"""What `tradewind storm` does, in order: worlds up and down, capacity, runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
import openai
from msgspec import Struct

from lab.bring_up import Lab, http_get
from lab.control import Order
from lab.errors import LabError
from lab.storm import stage
from lab.storm.event import Event, Phase, Population
from lab.storm.report import Report, Run, Step, Sweep
from lab.storm.run import Plan, Watcher, storm
from lab.storm.saturation import capacity_rps
from lab.storm.sweep import TIMES, steps, sweep_phases
from lab.world import CORE_HTTP_PORT, REGIONS, RegionSite

PROTECTED, UNPROTECTED, VIA = "protected", "unprotected", "via"
_CLIENTS_PER_SLOT = 1.5
_REVIVES_S = 120.0
_NEARLY = 0.97  # of what the cores should do


class Wanted(Struct, frozen=True, kw_only=True):
    """What was asked for on the command line."""

    directory: Path
    event: Event
    population: Population
    simulated: stage.Engine = stage.Engine()
    engine: str = "sim"
    seed: int = 1
    runs: tuple[str, ...] = (PROTECTED, UNPROTECTED)
    via: str = ""
    peers: tuple[str, ...] = ()
    kill: str = ""
    sweep: bool = False
    capacity_s: float = 6.0

    @property
    def slots(self) -> int:
        """Sequences that one core runs at once."""
        return stage.slots(self.event) if self.engine == "sim" else stage.TORCH_SLOTS


class Storm:
    """Runs what is wanted; `report` says what was found so far."""

    def __init__(self, wanted: Wanted, watcher: Watcher) -> None:
        self._wanted = wanted
        self._watcher = watcher
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._capacity = 0.0
        self._event = wanted.event  # its scale follows from the capacity where a model runs
        self._killed = ""  # in the world that is up
        self.runs: dict[str, Run] = {}
        self.left_out: dict[str, str] = {}
        self.sweep: Sweep | None = None

    async def run(self) -> None:
        wanted = self._wanted
        if set(wanted.runs) - {UNPROTECTED} or wanted.peers or wanted.sweep:
            await self._in_world(True)
        if UNPROTECTED in wanted.runs:
            await self._in_world(False)

    def report(self) -> Report:
        wanted = self._wanted
        return Report(
            engine=wanted.engine,
            seed=wanted.seed,
            cores=len(REGIONS),
            slots_each=wanted.slots,
            nominal_rps=round(stage.nominal_rps(wanted.simulated, wanted.slots), 1),
            simulated=wanted.simulated if wanted.engine == "sim" else None,
            event=self._event,
            population=wanted.population,
            phases=self._event.phases,
            runs=self.runs,
            sweep=self.sweep,
            left_out=self.left_out,
            cpus=len(os.sched_getaffinity(0)),
            duration_s=round(self._loop.time() - self._began_s, 1),
        )

    async def _in_world(self, protect: bool) -> None:
        """Bring the world up, run what belongs in it, and take it down whatever happens."""
        wanted = self._wanted
        world = stage.world(
            wanted.event, wanted.population, wanted.simulated, protect, wanted.slots
        )
        name = "protected" if protect else "unprotected"
        self._watcher.says(f"bringing up the {name} world")
        lab = Lab(wanted.directory, wanted.engine, lambda _: None, world)
        self._killed = ""
        try:
            await lab.start()
            await self._smoke(lab)
            await self._measure(lab)
            if not protect:
                await self._storm(lab, UNPROTECTED, _edges(lab))
                return
            if PROTECTED in wanted.runs:
                await self._storm(lab, PROTECTED, _edges(lab))
            if wanted.via:
                await self._storm(lab, VIA, _all_cities(wanted.event, wanted.via))
            if wanted.sweep:
                await self._sweep(lab)
            for peer in wanted.peers:
                await self._through(lab, peer)
        finally:
            await lab.stop()

    async def _smoke(self, lab: Lab) -> None:
        """One answer by the real client library through each edge."""
        for edge in lab.world.edges:
            tenant = lab.world.tenants[0].name
            async with openai.AsyncOpenAI(
                api_key=lab.keys[tenant], base_url=f"{edge.url}/v1", max_retries=5, timeout=60
            ) as client:
                try:
                    said = await client.chat.completions.create(
                        model=stage.MODEL,
                        messages=[{"role": "user", "content": "Is all well?"}],
                        max_tokens=8,
                    )
                except openai.OpenAIError as error:
                    raise LabError(f"edge {edge.name} does not answer: {error}") from error
            if not said.choices[0].message.content:
                raise LabError(f"edge {edge.name} gave an empty answer")

    async def _measure(self, lab: Lab) -> None:
        """Once: the cores of the other world are told otherwise, and are as fast."""
        wanted = self._wanted
        if self._capacity:
            return
        self._capacity = await capacity_rps(
            [region.http for region in lab.world.regions],
            stage.MODEL,
            wanted.population.max_tokens,
            round(_CLIENTS_PER_SLOT * wanted.slots),
            measured_s=wanted.capacity_s,
        )
        self._watcher.says(f"capacity, measured: {self._capacity:.1f} answers a second")
        if wanted.engine != "sim":
            self._event = stage.scaled_to(wanted.event, self._capacity)
            self._watcher.says(f"the event's rates are scaled by {self._event.scale:.4f}")
        await asyncio.sleep(1.0)

    async def _storm(
        self, lab: Lab, name: str, urls: Mapping[str, str], settings: str = ""
    ) -> None:
        plan = self._plan(name, self._event.phases, urls, settings, self._wanted.kill)
        await self._revive(lab)
        self._killed = plan.kill
        run, _ = await storm(lab, plan, self._watcher)
        if slow := self._slower():
            run = msgspec.structs.replace(run, warnings=(*run.warnings, slow))
        self.runs[name] = run

    async def _revive(self, lab: Lab) -> None:
        """What the run before killed is there for the next, too."""
        name, self._killed = self._killed, ""
        if not name:
            return
        self._watcher.says(f"starting {name} again")
        await lab.obey(Order("start", name))
        for region in lab.world.regions:
            await lab.supervisor.until(
                f"core {region.name}", partial(_is_ready, region), _REVIVES_S, f"core-{region.name}"
            )

    def _slower(self) -> str:
        """What makes ratios doubtful: a capacity that was measured while the machine was busy."""
        wanted = self._wanted
        nominal = stage.nominal_rps(wanted.simulated, wanted.slots)
        if wanted.engine != "sim" or self._capacity >= _NEARLY * nominal:
            return ""
        return (
            f"the capacity was measured as {self._capacity / nominal:.0%} of what the cores should "
            "do: the machine was busy then, and shares of it look better than they are"
        )

    def _plan(
        self,
        name: str,
        phases: tuple[Phase, ...],
        urls: Mapping[str, str],
        settings: str = "",
        kill: str = "",
    ) -> Plan:
        wanted = self._wanted
        return Plan(
            name=name,
            phases=phases,
            cities=wanted.event.cities,
            population=wanted.population,
            seed=wanted.seed,
            capacity_rps=self._capacity,
            urls=urls,
            settings=settings,
            kill=kill,
        )

    async def _sweep(self, lab: Lab) -> None:
        await self._revive(lab)
        phases = sweep_phases(self._event, TIMES)
        _, records = await storm(lab, self._plan("sweep", phases, _edges(lab)), self._watcher)
        found: tuple[Step, ...] = steps(records.rows, phases, self._capacity, self._event)
        self.sweep = Sweep(capacity_rps=self._capacity, steps=found)

    async def _through(self, lab: Lab, name: str) -> None:
        """The same clients through somebody else's proxy in front of the same cores."""
        from lab.storm import peers  # they need programs of their own

        wanted = self._wanted
        await self._revive(lab)  # it is there when a proxy first looks
        folder = lab.directory / "peers" / name
        folder.mkdir(parents=True, exist_ok=True)
        vips = [t.name for t in lab.world.tenants if t.tier == "vip"]
        cores = peers.Cores(
            addresses=tuple(region.http for region in lab.world.regions),
            model=stage.MODEL,
            slots=wanted.slots,
            answer_s=len(REGIONS) * wanted.slots / self._capacity,
            capacity_rps=self._capacity,
            deadline_s=wanted.population.timeout_s,
            vip_keys=tuple(lab.keys[vip] for vip in vips),
        )
        try:
            running = await peers.start(peers.PEERS[name], cores, lab.supervisor, folder)
        except LabError as error:  # the others' figures are worth something without it
            self.left_out[name] = str(error)
            self._watcher.says(f"{name} is left out: {error}")
            if name in lab.supervisor.children:
                await lab.supervisor.kill(name)
            return
        try:
            urls = _all_cities(wanted.event, running.url)
            await self._storm(lab, name, urls, running.settings)
        finally:
            await lab.supervisor.kill(running.name)


async def _is_ready(region: RegionSite) -> bool:
    status, _ = await http_get(region.address, CORE_HTTP_PORT, "/readyz")
    return status == 200


def _edges(lab: Lab) -> dict[str, str]:
    return {edge.name: edge.url for edge in lab.world.edges}


def _all_cities(event: Event, url: str) -> dict[str, str]:
    return {city.name: url.rstrip("/") for city in event.cities}

"""One run of the event in a world that is up: population, counters, what is killed, figures."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Mapping
from math import ceil
from pathlib import Path

import msgspec
from msgspec import Struct

from lab.bring_up import Lab
from lab.storm import cpu, figures, population, rows
from lab.storm.counters import Reading, Series, accepted, arrivals, finished, places, waiting
from lab.storm.event import Phase, Population, Share
from lab.storm.report import CPU_BUSY, LAG_MS, Run, slowest
from lab.storm.stage import MODEL
from topology.cursor import TIERS

_READ_S = 1.0
_KILL_AFTER_S = 0.3  # of the peak, as a share of its length
_POPULATION = "population"
_MIN_SPAN_S = 0.5
_START_S = 30.0


class Plan(Struct, frozen=True, kw_only=True):
    """What is run, and against whom."""

    name: str
    phases: tuple[Phase, ...]
    cities: tuple[Share, ...]
    population: Population
    seed: int
    capacity_rps: float
    urls: Mapping[str, str]  # by city
    settings: str = ""  # of a peer
    kill: str = ""  # a process of the lab, or `etcd`, killed at the peak


class Watcher:
    """Is told how the run goes: the live view, or lines in a log."""

    def begins(self, plan: Plan) -> None: ...

    def live(self, half_second: population.Live, series: Series) -> None: ...

    def says(self, text: str) -> None: ...


async def storm(lab: Lab, plan: Plan, watcher: Watcher) -> tuple[Run, rows.Records]:
    """Run it to its end. Whatever happens, no population is left running."""
    folder = lab.directory / "storm"
    folder.mkdir(exist_ok=True)
    settings = _write(lab, plan, folder)
    series = Series(places(lab.world))
    await series.read()
    watcher.begins(plan)
    command = [sys.executable, "-m", "lab.storm.population", str(settings)]
    child = await lab.supervisor.start(_POPULATION, command)
    tasks = [
        asyncio.create_task(_keep_reading(series)),
        asyncio.create_task(_watch(folder / f"{plan.name}.live", series, watcher)),
    ]
    usage = asyncio.create_task(_peak(lab, plan, folder / f"{plan.name}.live", watcher))
    try:
        limit_s = plan.phases[-1].ends_s + _patience_s(plan.population) + 30
        async with asyncio.timeout(limit_s):
            await child.process.wait()
        child.expected_to_die = child.process.returncode == 0
        lab.supervisor.check(_POPULATION)
        await series.read()
    finally:
        if child.running:
            await lab.supervisor.kill(_POPULATION)
        for task in (*tasks, usage):
            task.cancel()
        await asyncio.gather(*tasks, usage, return_exceptions=True)
    records = rows.read(folder / f"{plan.name}.rows")
    spent = usage.result() if not usage.cancelled() and usage.exception() is None else None
    run = summary(plan, records, series, spent)
    return msgspec.structs.replace(run, warnings=(*run.warnings, *_ended(lab))), records


def _ended(lab: Lab) -> list[str]:
    """Processes that ended and were not killed by us: the figures are those of what was left."""
    return [
        f"{name} ended with status {child.process.returncode}; its log is {child.log}"
        for name, child in lab.supervisor.children.items()
        if not child.running and not child.expected_to_die
    ]


def _patience_s(who: Population) -> float:
    """How long what is under way is waited for, after the last request was due."""
    return who.timeout_s + 2.0


def _write(lab: Lab, plan: Plan, folder: Path) -> Path:
    path = folder / f"{plan.name}.json"
    for old in (folder / f"{plan.name}.live", folder / f"{plan.name}.rows"):
        old.unlink(missing_ok=True)
    settings = population.Settings(
        phases=plan.phases,
        cities=plan.cities,
        population=plan.population,
        seed=plan.seed,
        urls=dict(plan.urls),
        keys=lab.keys,
        model=MODEL,
        patience_s=_patience_s(plan.population),
        rows=str(folder / f"{plan.name}.rows"),
        live=str(folder / f"{plan.name}.live"),
    )
    path.touch(mode=0o600)  # it holds the keys
    path.write_bytes(msgspec.json.encode(settings))
    return path


async def _keep_reading(series: Series) -> None:
    while True:
        await asyncio.sleep(_READ_S)
        await series.read()


async def _watch(live: Path, series: Series, watcher: Watcher) -> None:
    """Pass on each line of the population's file as it comes."""
    at = 0
    while True:
        await asyncio.sleep(0.1)
        lines = _whole_lines(live, at)
        at += sum(len(line) + 1 for line in lines)
        for line in lines:
            watcher.live(msgspec.json.decode(line, type=population.Live), series)


def _began(live: Path) -> bool:
    return live.exists() and live.stat().st_size > 0


def _whole_lines(file: Path, at: int) -> list[bytes]:
    """What was written since, up to the last line that is complete."""
    try:
        whole, _, _ = file.read_bytes()[at:].rpartition(b"\n")
    except OSError:
        return []  # not yet
    return whole.splitlines()


async def _peak(lab: Lab, plan: Plan, live: Path, watcher: Watcher) -> cpu.Spent | None:
    """Kill what is to be killed, and measure the CPU, while the peak lasts."""
    peak = _phase(plan, "peak")
    if peak is None:
        return None
    await lab.supervisor.until("the population", lambda: _began(live), _START_S, _POPULATION)
    begun_s = time.monotonic()

    async def until(at_s: float) -> None:
        await asyncio.sleep(max(0.0, begun_s + at_s - time.monotonic()))

    await until(peak.begins_s)
    before = cpu.now(_pids(lab))
    if plan.kill:
        await until(peak.begins_s + _KILL_AFTER_S * (peak.ends_s - peak.begins_s))
        await lab.kill(plan.kill)
        watcher.says(f"{plan.kill} killed, {time.monotonic() - begun_s:.1f} s into the run")
    await until(peak.ends_s)
    return cpu.between(before, cpu.now(_pids(lab)))


def _pids(lab: Lab) -> dict[str, int]:
    return {name: child.pid for name, child in lab.supervisor.children.items() if child.running}


def _phase(plan: Plan, name: str) -> Phase | None:
    return next((phase for phase in plan.phases if phase.name == name), None)


def capacity_left(plan: Plan, regions: int) -> float:
    """What the cores can do at the peak; a region that is killed takes its part with it."""
    if not plan.kill.startswith("core-"):
        return plan.capacity_rps
    before = _KILL_AFTER_S * plan.capacity_rps
    return before + (1 - _KILL_AFTER_S) * plan.capacity_rps * (regions - 1) / regions


def summary(plan: Plan, records: rows.Records, series: Series, spent: cpu.Spent | None) -> Run:
    """The run's figures."""
    found = records.rows
    began_s = records.began_s
    peak = _phase(plan, "peak") or plan.phases[0]
    from_s = min(peak.begins_s + figures.RAMP_S, peak.ends_s - _MIN_SPAN_S)
    goodput = figures.goodput_rps(found, from_s, peak.ends_s)
    capacity = capacity_left(plan, len(series.names("core")))
    event = [row for row in found if row.phase != "baseline"]
    event_s = began_s + peak.begins_s
    over_s = time.monotonic()
    reached = series.grown("core", arrivals, event_s, over_s)
    upstream = figures.sent_upstream(event)
    made = series.grown("core", finished, event_s, over_s)
    used = sum(figures.from_region(row) for row in event)
    tiers = {tier: figures.tier_figures(found, tier, plan.phases) for tier in TIERS}
    vip = tiers["vip"]
    length_s = ceil(max([plan.phases[-1].ends_s, *(row.done_s for row in found)]))
    moments = [began_s + second for second in range(length_s + 1)]
    spent = spent or cpu.Spent(0.0, 0, {})
    return Run(
        name=plan.name,
        settings=plan.settings,
        capacity_rps=plan.capacity_rps,
        capacity_at_peak_rps=round(capacity, 2),
        offered_peak_rps=round(figures.offered_rps(found, peak.begins_s, peak.ends_s), 1),
        tries_peak_rps=round(figures.tries_rps(found, peak.begins_s, peak.ends_s), 1),
        goodput_peak_rps=round(goodput, 2),
        goodput_ratio_at_peak=round(goodput / capacity, 4),
        distinct_ratio_at_peak=round(
            figures.distinct_rps(found, from_s, peak.ends_s) / capacity, 4
        ),
        answers_ratio_at_peak=round(figures.answers_rps(found, from_s, peak.ends_s) / capacity, 4),
        vip_success=vip.success,
        vip_p99_ms=vip.p99_ms,
        vip_p99_unloaded_ms=vip.p99_unloaded_ms,
        amplification=round(reached / upstream, 4) if upstream else 0.0,
        edge_amplification=_edge_amplification(series, event_s, over_s),
        recovery_s=slowest([tier.recovery_s for tier in tiers.values()]),
        reached_cores=round(reached),
        sent_upstream=upstream,
        finished_by_cores=round(made),
        wasted_share=round(max(0.0, 1 - used / made), 4) if made else 0.0,
        tiers={str(tier): found_ for tier, found_ in tiers.items()},
        errors=dict(Counter(row.error for row in event if not row.ok).most_common(20)),
        qualities=dict(Counter(row.quality or row.served_by for row in event if row.ok)),
        killed=plan.kill,
        wrong_answers=records.wrong,
        connections_max=records.connections_max,
        lag_p99_ms=records.lag_p99_ms,
        lag_max_ms=records.lag_max_ms,
        population_cpu_s=records.cpu_s,
        cpu_at_peak=spent,
        warnings=_warnings(records, spent),
        over_time=figures.seconds(
            found,
            length_s,
            series.over_time("core", arrivals, moments),
            series.over_time("core", accepted, moments),
            series.over_time("core", waiting, moments),
        ),
    )


def _edge_amplification(series: Series, from_s: float, to_s: float) -> float | None:
    """Attempts of edges for each request that they sent upstream for the first time."""

    def attempts(reading: Reading) -> float:
        return reading.sum("tradewind_edge_attempts_total")

    def repeats(reading: Reading) -> float:
        names = ("retried", "hedged", "resumed")
        return sum(reading.sum(f"tradewind_edge_{name}_total") for name in names)

    sent = series.grown("edge", attempts, from_s, to_s)
    first = sent - series.grown("edge", repeats, from_s, to_s)
    return round(sent / first, 4) if first > 0 else None


def _warnings(records: rows.Records, spent: cpu.Spent) -> tuple[str, ...]:
    """What makes the figures doubtful."""
    found = []
    if records.lag_p99_ms > LAG_MS:
        found.append(
            f"the population was late: requests were sent {records.lag_p99_ms:.0f} ms after they "
            "were due (p99); part of the latencies is its own"
        )
    if spent.busy_share > CPU_BUSY:
        own = sum(spent.processes.values()) / spent.cpus
        found.append(
            f"{spent.busy_share:.0%} of the CPU was in use at the peak, {own:.0%} by the storm "
            "itself: the machine, not the design, may have been the limit; try a smaller --scale"
        )
    return tuple(found)

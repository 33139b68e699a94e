"""The world in which the storm happens: three regions, the edges of the event's cities, tenants,
and cores whose simulated engine resembles a server with a GPU.

On a GPU a step of decoding reads all weights whatever the batch, so it grows little with it: 32 ms
alone, 15% more with sixteen sequences. What bounds such a server is how many sequences it holds;
so the slots, and with them the capacity, go with the scale of the event: about twice the normal
load at any scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from lab.storm.event import Event, Population, tenant_names
from lab.world import EDGES, MODEL, REGIONS, TenantPlan, World

SLOTS = 16  # of one core, at `SCALE`
SCALE = 0.2
TORCH_SLOTS = 4
TORCH_TOKENS = 8
_NAIVE_QUEUE = 1_000_000  # a service that drops nothing


class Engine(Struct, frozen=True, kw_only=True):
    """What the simulated engine is like (`region_core.engine.sim.SimSettings`)."""

    prefill_tokens_per_s: float = 20_000.0
    step_ms: float = 32.0
    step_ms_per_sequence: float = 0.3
    answer_tokens_min: int = 12
    answer_tokens_max: int = 36


def slots(event: Event) -> int:
    """Sequences that one core runs at once."""
    return max(2, round(SLOTS * event.scale / SCALE))


def nominal_rps(engine: Engine, slots_each: int, regions: int = len(REGIONS)) -> float:
    """What the cores should do together; what they do is measured."""
    step_s = (engine.step_ms + engine.step_ms_per_sequence * (slots_each - 1)) / 1000
    tokens = (engine.answer_tokens_min + engine.answer_tokens_max) / 2 + 1  # and the end
    return regions * slots_each / (tokens * step_s)


def answer_s(engine: Engine, slots_each: int) -> float:
    """How long an answer takes when all slots are in use."""
    return len(REGIONS) * slots_each / nominal_rps(engine, slots_each)


def small(population: Population) -> Population:
    """For a real model on this machine's CPUs: short answers, and more patience."""
    return msgspec.structs.replace(
        population, max_tokens=TORCH_TOKENS, timeout_s=12.0, patience_s=48.0
    )


def scaled_to(event: Event, capacity_rps: float) -> Event:
    """The event with a normal load of half of what the cores can do."""
    at_one = msgspec.structs.replace(event, scale=1.0).normal_rps
    return msgspec.structs.replace(event, scale=capacity_rps / 2 / at_one)


def world(
    event: Event,
    population: Population,
    engine: Engine,
    protect: bool,
    slots_each: int,
    policy: Mapping[str, Any] | None = None,
) -> World:
    """Everything that runs. `policy` is laid over what the storm sets itself."""
    tenants = tuple(
        TenantPlan(name, tier, deadline_ms=round(population.timeout_s * 1000))
        for tier, names in tenant_names(population).items()
        for name in names
    )
    places = {city.name for city in event.cities}
    overload: dict[str, Any] = {"protect": protect}
    spec: dict[str, Any] = {"overload": overload} | dict(policy or {})
    return World(
        regions=REGIONS,
        edges=tuple(edge for edge in EDGES if edge.name in places),
        tenants=tenants,
        core=core_settings(engine, protect, slots_each),
        edge={"log_level": "warning"},
        model={"default_output_tokens": 64},
        policy=spec,
        capacity_tokens_per_s=round(
            nominal_rps(engine, slots_each)
            * (engine.answer_tokens_min + engine.answer_tokens_max)
            / 2
            / len(REGIONS)
        ),
        dns=False,
    )


def core_settings(engine: Engine, protect: bool, slots_each: int) -> dict[str, Any]:
    """What is laid over the lab's own settings of a core."""
    scheduling: dict[str, Any] = {
        "slots": slots_each,
        "context_tokens": 512,
        "max_output_tokens": 128,
        "default_output_tokens": 64,
        "protect": protect,
    }
    if not protect:
        scheduling["waiting"] = _NAIVE_QUEUE
    return {
        "sim": {name: getattr(engine, name) for name in Engine.__struct_fields__},
        "scheduling": scheduling,
        "log_level": "warning",
    }


__all__ = ["MODEL", "Engine", "answer_s", "core_settings", "nominal_rps", "slots", "world"]

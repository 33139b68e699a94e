"""Goodput at one load after the other: it must not fall as more is asked than can be had. Pure.

The yardstick is f_sat / f of Zhou et al. (DAGOR, 2018): of a load f above what saturates the
service, f_sat can be had, and how near goodput comes to that is what counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from lab.storm import figures
from lab.storm.event import Event, Phase
from lab.storm.report import Step
from lab.storm.rows import Row

TIMES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # the normal load
LENGTH_S = 7.0
SETTLES_S = 2.0  # of each load, not counted
PAUSE_S = 3.0  # between two, for the queues to run empty


def sweep_phases(event: Event, times: Sequence[float]) -> tuple[Phase, ...]:
    return tuple(
        Phase(
            f"{each:g}x",
            index * (LENGTH_S + PAUSE_S),
            index * (LENGTH_S + PAUSE_S) + LENGTH_S,
            event.normal_rps * each,
        )
        for index, each in enumerate(times)
    )


def steps(
    rows: Sequence[Row], phases: Sequence[Phase], capacity_rps: float, event: Event
) -> tuple[Step, ...]:
    """What each load came to. Goodput is held against the capacity; where less is asked, what
    counts is how much of it was answered."""
    found = []
    for phase in phases:
        mine = [row for row in rows if row.phase == phase.name]
        from_s = phase.begins_s + SETTLES_S
        goodput = figures.goodput_rps(rows, from_s, phase.ends_s)
        offered = figures.offered_rps(mine, from_s, phase.ends_s)
        ratio = goodput / capacity_rps
        if offered < capacity_rps and mine:
            ratio = sum(row.ok for row in mine) / len(mine)
        vip = [row for row in mine if row.tier == "vip"]
        answered = [row for row in vip if row.ok]
        found.append(
            Step(
                times=round(phase.rps / event.normal_rps, 3),
                offered_rps=round(offered, 2),
                of_capacity=round(offered / capacity_rps, 3),
                goodput_rps=round(goodput, 2),
                goodput_ratio=round(ratio, 4),
                vip_success=round(len(answered) / len(vip), 6) if vip else 1.0,
                vip_p99_ms=figures.milliseconds(
                    figures.nearest((row.whole_s for row in answered), 0.99)
                ),
            )
        )
    return tuple(found)

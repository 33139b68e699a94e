"""A core whose simulated engine steps at a fixed pace and stamps its tokens.

    python -m benchmarks.stream_core --settings FILE

A step takes `sim.step_ms`, however many sequences it has, and what the core does for one step
happens while the next one runs, as with an engine on an accelerator. Answers never end by
themselves; their tokens are of benchmarks/stamps.py. Everything else is the ordinary core.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

from benchmarks import stamps
from region_core import process
from region_core.cli import app
from region_core.engine.sim import SimEngine
from region_core.scheduling.plan import Step


class PacedSim(SimEngine):
    """`sim` at a fixed pace."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self._pace = stamps.Pace(self._settings.step_ms / 1000)
        self._sleeper = threading.Event()

    def step(self, step: Step) -> Mapping[int, int]:
        self._sleeper.wait(self._pace.until_next_s())
        token = stamps.CHARACTERS << 24 | int.from_bytes(stamps.now(), "little")
        sampled = (*step.decodes, *(chunk.slot for chunk in step.chunks if chunk.last))
        return dict.fromkeys(sampled, token)


if __name__ == "__main__":
    process.SimEngine = PacedSim  # type: ignore[misc]
    app(["run", *sys.argv[1:]])

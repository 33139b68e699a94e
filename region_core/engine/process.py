"""An engine in a process of its own.

Why: torch gives up the interpreter's lock in each of the 750 operations of a step and must get
it back after each. Beside an event loop that is busy, with refusals in a storm, say, every one
of them may wait: measured with the loop busy for 30% of the time, an engine in a thread fell
to less than half its tokens per second (docs/performance.md, "Engine"). In a process it
waits once a step. And what kills an engine, such as a fault in a driver or the kernel's memory
killer, does not take the core's connections with it: the engine is started again.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from region_core.engine.base import Begin, Tokenizer
from region_core.engine.byte_level import ByteLevelTokenizer
from region_core.engine.channel import Channel, Done, Fault, Gone, Ready, Setup, Work
from region_core.errors import EngineFault, EngineNotStarted
from region_core.scheduling.plan import Step
from region_core.weights.bundle import read_card
from runtime import logs

log = logs.get("engine")

START_TIMEOUT_S = 600.0  # a first start converts the weights, perhaps behind other cores
STEP_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0
# How long one of torch's threads spins for another before it sleeps (libgomp's unit: turns of a
# loop; its default is 300,000). A step has some 200 places where they wait for each other. On a
# CPU that others use too, the thread waited for may not be running, and the one that spins keeps
# it from running: measured beside two busy processes on two CPUs, a step of one sequence took 350
# to 700 ms with the default and 30 to 85 ms with this; on a quiet machine 10 and 12 ms. Whoever
# gives an engine CPUs of its own may set GOMP_SPINCOUNT to 5000 or more: it is not overwritten.
SPIN_COUNT = "1000"
# MKL may take another path where a buffer is not aligned, and each thread's buffer is aligned in
# its own way: measured, 1 in 100,000 numbers of an attention's result then depended on the thread
# that computed it. "STRICT" makes results independent of alignment and of how many threads there
# are, at no cost that could be measured.
ENVIRONMENT = {"GOMP_SPINCOUNT": SPIN_COUNT, "MKL_CBWR": "AVX512,STRICT"}

_READY: msgspec.msgpack.Decoder[Ready | Fault] = msgspec.msgpack.Decoder(Ready | Fault)
_REPLY: msgspec.msgpack.Decoder[Done | Fault] = msgspec.msgpack.Decoder(Done | Fault)


class ProcessEngine:
    """`Engine` over a worker process. Raises `EngineNotStarted` when it cannot be had at all.

    When the worker dies, the step under way raises `EngineFault`, and the next one starts a new
    worker first.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._changes: list[Begin | int] = []
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            ready = self._start()
        except EngineFault as error:
            raise EngineNotStarted(error.message) from error
        self.description = ready.description
        self.limits = ready.limits
        bundle = Path(ready.bundle)
        card = read_card(bundle)
        self.tokenizer: Tokenizer = ByteLevelTokenizer(bundle / "tokenizer.json", card)

    @property
    def pid(self) -> int | None:
        """Of the worker, while there is one."""
        return self._process.pid if self._process is not None else None

    def begin(self, sequence: Begin) -> None:
        self._changes.append(sequence)

    def release(self, slot: int) -> None:
        self._changes.append(slot)

    def step(self, step: Step) -> Mapping[int, int]:
        if self._channel is None:
            log.warning("starting the engine again")
            self._start()
        assert self._channel is not None
        work = Work(tuple(self._changes), step)
        self._changes.clear()
        try:
            self._channel.send(work)
            reply = self._channel.receive(_REPLY, STEP_TIMEOUT_S)
        except (Gone, TimeoutError) as error:
            why = "did not answer" if isinstance(error, TimeoutError) else "ended"
            raise EngineFault(f"the engine's process {why} ({self._stop()})") from error
        if isinstance(reply, Fault):
            raise EngineFault(reply.message)
        return reply.tokens

    def close(self) -> None:
        self._stop()

    def _start(self) -> Ready:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "region_core.engine.worker", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=ENVIRONMENT | os.environ,
            )
        self._channel = Channel(ours)
        try:
            self._channel.send(self._setup)
            ready = self._channel.receive(_READY, START_TIMEOUT_S)
        except (Gone, TimeoutError) as error:
            raise EngineFault(f"the engine's process did not start ({self._stop()})") from error
        if isinstance(ready, Fault):
            self._stop()
            raise EngineFault(ready.message)
        log.info("the engine runs in a process of its own", pid=self._process.pid)
        return ready

    def _stop(self) -> str:
        """End the worker; says how it ended."""
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is None:
            return "it was not running"
        try:
            code = process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return f"exit code {code}"

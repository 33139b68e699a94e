"""The engine's process: `python -m region_core.engine.worker <file descriptor>`.

Started by `ProcessEngine`, and nothing to be started by hand. It ends when the core closes the
channel, or dies: the channel is then closed for it.
"""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import msgspec

from region_core.engine.base import Engine, Limits
from region_core.engine.channel import Channel, Done, Fault, Gone, Ready, Setup, Work
from region_core.errors import EngineFault
from runtime import logs
from runtime.errors import TradewindError

log = logs.get("engine")

_SETUP = msgspec.msgpack.Decoder(Setup)
_WORK = msgspec.msgpack.Decoder(Work)


def main(descriptor: int) -> None:
    # A terminal's Ctrl-C reaches us too; when to stop is the core's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    try:
        setup = channel.receive(_SETUP)
        logs.configure(setup.process, setup.log_level)
        try:
            engine, ready = start(setup)
        except TradewindError as error:
            channel.send(Fault(str(error)))
            return
        channel.send(ready)
        serve(channel, engine)
    except Gone:
        return  # the core has ended


def start(setup: Setup) -> tuple[Engine, Ready]:
    from region_core.engine.calibrate import open_quantised
    from region_core.engine.torch import TorchEngine, device_of
    from region_core.weights.bundle import open_bundle

    weights = Path(setup.weights) if setup.weights else None
    cache = Path(setup.cache_dir) if setup.cache_dir else None
    if setup.dtype == "int8":
        bundle = open_quantised(weights, setup.sha256, cache)
    else:
        bundle = open_bundle(weights, setup.sha256, cache, setup.dtype)
    context = min(setup.limits.context_tokens, bundle.card.context_tokens)
    limits = Limits(setup.limits.slots, context)
    device = device_of(setup.device)
    engine = TorchEngine(bundle, limits, device, setup.threads, pack=setup.pack)
    return engine, Ready(engine.description, limits, str(bundle.folder))


def serve(channel: Channel, engine: Engine) -> None:
    """Steps, until the core is gone."""
    while True:
        work = channel.receive(_WORK)
        for change in work.changes:
            if isinstance(change, int):
                engine.release(change)
            else:
                engine.begin(change)
        try:
            channel.send(Done(dict(engine.step(work.step))))
        except EngineFault as error:
            channel.send(Fault(error.message))


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""The WAN emulator: UDP relays that put distance, loss and cuts between loopback addresses.

One process carries all links. Whoever sends to a link's `listen` address reaches its `target`
after the latency of the direction `out`, and what comes back after that of `back`. Run it with
`python -m lab.wan --settings FILE`; change links with `WanControl`, or `tradewind lab wan`.

What a packet suffers is decided by `Impairment`, which is pure and seeded; what is under way
waits in one `DelayLine`, so that thousands of packets need one timer.
"""

from lab.wan.control import Answer, LinkState, Order, WanControl
from lab.wan.emulator import Wan
from lab.wan.figures import Figures, Flap, WanLink, WanSettings

__all__ = [
    "Answer",
    "Figures",
    "Flap",
    "LinkState",
    "Order",
    "Wan",
    "WanControl",
    "WanLink",
    "WanSettings",
]

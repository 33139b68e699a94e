"""The registry's interface: who is there, kept by leases in the store or by Consul's checks.

What a caller may rely on:

1. A member that is registered, and renewed at least every third of `ttl_s`, is in `members` of
   every replica. One that is no longer renewed goes from there by itself, soon after `ttl_s`.
2. `forget` takes a member out at once, and only the incarnation that it names.
3. While the registry is away (`status.available` is false) `members` stays what it was last.
4. A member that the registry lost (it was wiped, or restarted without a disk) makes `renew` raise
   `MemberLost`; registering it again brings it back.

The caller's duty: one node is kept by one replica at a time, the one that it talks to. The lease
which `register` returns is shown to the next replica, which goes on with it where it still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from control_plane.directives.observed import Member
from control_plane.store.base import StoreStatus

__all__ = ["Member", "Registry", "region_of_core", "registered"]

Listener = Callable[[], None]


class Registry(Protocol):
    """See the module's text. Use within one event loop.

    `register`, `renew` and `forget` may raise `RegistryUnavailable`.
    """

    @property
    def backend(self) -> str:
        """For people: "leases" or "consul"."""
        ...

    @property
    def ttl_s(self) -> float:
        """How long a member stays without being renewed."""
        ...

    @property
    def members(self) -> Mapping[str, Member]:
        """Node id -> member: all of them, whichever replica keeps them. Read it without an await
        in between: it may change in place."""
        ...

    @property
    def status(self) -> StoreStatus:
        """Whether the registry answers, and since when."""
        ...

    def on_change(self, listener: Listener) -> None:
        """Call `listener` on the loop whenever `members` became another."""
        ...

    def start(self) -> None:
        """Begin to follow the members, whether the registry answers or not."""
        ...

    async def close(self) -> None:
        """Stop following. Members stay registered until their time is over."""
        ...

    async def register(self, member: Member, lease: int = 0) -> int:
        """Make a member, or what changed of it, known to all. Returns its lease: `lease` where
        that is this node's and still holds, else another. 0 where the backend knows no leases."""
        ...

    async def renew(self, member: Member, lease: int) -> None:
        """Say that a member is alive. Raises `MemberLost` where it must be registered anew."""
        ...

    async def forget(self, member: Member, lease: int) -> None:
        """Take a member out, unless another incarnation of it has registered since."""
        ...


def registered(registry: Registry, regions: Iterable[str]) -> dict[str, bool | None]:
    """For each region: whether a healthy core of it is registered; None: nobody can say."""
    if not registry.status.available:
        return dict.fromkeys(regions)
    well = {m.name for m in registry.members.values() if m.role == "core" and m.healthy}
    return {region: region in well for region in regions}


def region_of_core(name: str, regions: Iterable[str]) -> str | None:
    """The region that a core named `name` belongs to: `<region>` or `<region>.<core>`, as
    tunnels see it. Where two fit, the longer name. None: there is no such region."""
    fitting = [r for r in regions if name == r or name.startswith(r + ".")]
    return max(fitting, key=len, default=None)

"""What is served to proxies now: one translation per profile and stage of a rollout. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from control_plane.changes.rollout_record import RolloutRecord, snapshot_before
from control_plane.director.state import State
from control_plane.discovery.errors import TooMany
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.spread import World
from control_plane.discovery.proxies.translation import Bundle, translate
from runtime import logs
from runtime.identity import Principal
from runtime.validation import InvalidDocument
from topology.snapshot import Snapshot

log = logs.get("proxies")

PROFILES_MAX = 256  # that differ among the proxies that are connected


class Translations:
    """`publish` first; then ask `bundle_for`. Each is made once, however many proxies it serves.

    `used` says which profiles are: what nobody needs is forgotten.
    """

    def __init__(self, used: Callable[[], Iterable[Profile]]) -> None:
        self._used = used
        self._now: World | None = None
        self._before: World | None = None  # for proxies beyond the stage of `_rollout`
        self._rollout: RolloutRecord | None = None
        self._bundles: dict[tuple[Profile, bool], Bundle] = {}

    @property
    def published(self) -> bool:
        return self._now is not None

    def __len__(self) -> int:
        return len(self._bundles)

    def publish(
        self, snapshot: Snapshot, rollout: RolloutRecord | None, state: State, now_s: float
    ) -> None:
        """Serve this from now on."""
        head_moved = self._now is None or self._now.snapshot is not snapshot
        rollout = rollout if rollout is not None and rollout.under_way else None
        before = self._snapshot_before(snapshot, rollout, head_moved=head_moved)
        self._rollout = rollout
        self._now = World(snapshot, state, now_s)
        self._before = World(before, state, now_s) if before is not None else None
        self._forget()
        for (profile, has_change), earlier in list(self._bundles.items()):
            self._bundles[profile, has_change] = self._translate(profile, has_change, earlier)

    def bundle_for(self, profile: Profile, principal: Principal) -> Bundle:
        """What a proxy is served. Raises `TooMany`."""
        rollout = self._rollout
        has_change = self._before is None or rollout is None or rollout.has(str(principal))
        found = self._bundles.get((profile, has_change))
        if found is None:
            self._make_room(profile)
            found = self._translate(profile, has_change, None)
            self._bundles[profile, has_change] = found
        return found

    def next_expiry_s(self) -> float | None:
        """When, in Unix time, the next override expires; None: none will."""
        if self._now is None:
            return None
        ends = [spec.expires_s for spec in self._now.snapshot.overrides.values()]
        return min((end for end in ends if end is not None and end > self._now.now_s), default=None)

    def _translate(self, profile: Profile, has_change: bool, earlier: Bundle | None) -> Bundle:
        world = self._now if has_change or self._before is None else self._before
        assert world is not None, "publish first"
        return translate(world, profile, earlier, staged=world is self._before)

    def _snapshot_before(
        self, head: Snapshot, rollout: RolloutRecord | None, *, head_moved: bool
    ) -> Snapshot | None:
        if rollout is None:
            return None
        same = self._rollout is not None and self._rollout.before == rollout.before
        if same and not head_moved and self._before is not None:
            return self._before.snapshot
        try:
            return snapshot_before(rollout, head)
        except InvalidDocument as error:  # nobody could have written it through the admin API
            log.error("what was before the rollout does not fit together", reason=str(error))
            return self._now.snapshot if self._now is not None else None

    def _make_room(self, profile: Profile) -> None:
        profiles = {known for known, _ in self._bundles}
        if profile in profiles or len(profiles) < PROFILES_MAX:
            return
        self._forget()
        if len({known for known, _ in self._bundles}) >= PROFILES_MAX:
            raise TooMany(
                f"{PROFILES_MAX} kinds of proxies are connected already",
                hint="let proxies share `listen`, `edge`, `tenant` and `upstream`",
            )

    def _forget(self) -> None:
        kept = frozenset(self._used())
        stages = (True, False) if self._before is not None else (True,)
        self._bundles = {
            key: bundle
            for key, bundle in self._bundles.items()
            if key[0] in kept and key[1] in stages
        }

"""What is served to proxies now: the newest world, or the one before a rollout. Pure."""

from __future__ import annotations

from control_plane.directives.state import State
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.spread import World
from control_plane.discovery.proxies.translation import Bundle, Translator
from control_plane.rollout_record import RolloutRecord, snapshot_before
from runtime import logs
from runtime.identity import Principal
from runtime.validation import InvalidDocument
from topology.snapshot import Snapshot

log = logs.get("proxies")


class Translations:
    """`publish` first; then ask `bundle_for`."""

    def __init__(self) -> None:
        self._now: Translator | None = None
        self._before: Translator | None = None  # for proxies beyond the stage of `_rollout`
        self._rollout: RolloutRecord | None = None

    @property
    def published(self) -> bool:
        return self._now is not None

    def publish(
        self, snapshot: Snapshot, rollout: RolloutRecord | None, state: State, now_s: float
    ) -> None:
        """Serve this from now on."""
        rollout = rollout if rollout is not None and rollout.under_way else None
        before = self._snapshot_before(snapshot, rollout)
        self._rollout = rollout
        self._before = (
            Translator(World(before, state, now_s), self._before, staged=True)
            if before is not None
            else None
        )
        self._now = Translator(
            World(snapshot, state, now_s),
            self._now,
            before=self._before,
            base_revision=rollout.base_revision if rollout is not None else 0,
        )

    def bundle_for(self, profile: Profile, principal: Principal) -> Bundle:
        """What a proxy is served."""
        assert self._now is not None, "publish first"
        if self._before is None or self._rollout is None or self._rollout.has(str(principal)):
            return self._now.bundle_for(profile)
        return self._before.bundle_for(profile)

    def next_expiry_s(self) -> float | None:
        """When, in Unix time, the next override expires; None: none will."""
        if self._now is None:
            return None
        world = self._now.world
        ends = [spec.expires_s for spec in world.snapshot.overrides.values()]
        return min((end for end in ends if end is not None and end > world.now_s), default=None)

    def _snapshot_before(self, head: Snapshot, rollout: RolloutRecord | None) -> Snapshot | None:
        if rollout is None:
            return None
        same = self._rollout is not None and self._rollout.before == rollout.before
        unmoved = self._now is not None and self._now.world.snapshot is head
        if same and unmoved and self._before is not None:
            return self._before.world.snapshot
        try:
            return snapshot_before(rollout, head)
        except InvalidDocument as error:  # nobody could have written it through the admin API
            log.error("what was before the rollout does not fit together", reason=str(error))
            return self._now.world.snapshot if self._now is not None else None

"""What the snapshot in force means for this edge, worked out once per snapshot."""

from __future__ import annotations

import hashlib

import msgspec

from edge_node.admission.quota import Quotas
from edge_node.cache.disk import DiskTier
from edge_node.cache.exact import ExactCache
from edge_node.cache.fault import Fault
from edge_node.errors import NotReady
from edge_node.forward.choice import Choice
from edge_node.front.auth import Keyring
from edge_node.front.replies import Answer, Headers
from edge_node.staleness import Staleness
from topology.directive import Directive
from topology.overlay.frames import MAX_PAYLOAD_BYTES
from topology.policy import PolicySpec
from topology.resources import Key
from topology.routing import selects
from topology.snapshot import Snapshot
from topology.wire.chat import ModelEntry, models_body

EncodedReply = tuple[Headers, bytes]

FAILURES_BYTES = 2 * 2**20


class Serving:
    """The snapshot in force and everything that follows it."""

    def __init__(self, edge: str, keyring: Keyring, choice: Choice, quotas: Quotas) -> None:
        self.edge = edge
        self.quotas = quotas
        self.staleness = Staleness()
        self.keyring = keyring
        self.choice = choice
        self.ready = False
        self.cache: ExactCache[Answer, EncodedReply] = ExactCache(0)
        self.disk: DiskTier | None = None
        # Requests that can only fail, by their spelling.
        self.failures: ExactCache[Fault, None] = ExactCache(FAILURES_BYTES)
        self.reuses = True
        self._epochs: dict[str, bytes] = {}
        self._models: dict[str, bytes] = {}
        self.snapshot = Snapshot.empty()
        self._derive()

    def use(self, snapshot: Snapshot) -> None:
        """Serve by `snapshot` from now on; requests under way keep what they have read."""
        self.snapshot = snapshot
        self.keyring.use(snapshot)
        self.choice.use(snapshot)
        self._derive()
        self.ready = True

    def use_directive(self, directive: Directive) -> None:
        """Go by what the director told this edge, from now on."""
        self.choice.use_directive(directive)

    def _derive(self) -> None:
        policy = self.snapshot.policy
        self.body_limit_bytes = min(policy.request_max_bytes, MAX_PAYLOAD_BYTES)
        self.attempts = policy.attempts
        self.protects = policy.overload.protect
        self.silence_s = policy.first_token_timeout_ms / 1000
        self._derive_caches(policy)
        self._epochs = {}
        self._models = {}

    def _derive_caches(self, policy: PolicySpec) -> None:
        caches = policy.cache
        self.reuses = policy.overload.protect
        self.cache.keep_s = max(caches.revalidate_s, caches.stale_s)
        self.cache.resize(policy.cache_max_bytes if self.reuses else 0, caches.tenant_share)
        self.cache.forget_aliases()
        self.failures.resize(0, caches.tenant_share)  # others may be right now
        self.failures.resize(FAILURES_BYTES if self.reuses else 0, caches.tenant_share)
        if self.disk is not None:
            self.disk.limit(caches.disk_max_bytes if self.reuses else 0, caches.tenant_share)

    def require_ready(self) -> None:
        if not self.ready:
            raise NotReady("This edge has no configuration yet; try again shortly.")
        self.staleness.check()

    def epoch(self, model: str) -> bytes:
        """Stands for the whole definition of a model, and for how often an operator has had
        answers forgotten (`CachePolicy.epoch`): another one, other answers."""
        epoch = self._epochs.get(model)
        if epoch is None:
            resource = self.snapshot.get(Key("Model", model))
            assert resource is not None  # the caller has found it in this snapshot
            spec = msgspec.json.encode((resource.spec, self.snapshot.policy.cache.epoch))
            epoch = self._epochs[model] = hashlib.blake2b(spec, digest_size=8).digest()
        return epoch

    def models_for(self, tenant: str) -> bytes:
        """The body of /v1/models for a tenant."""
        body = self._models.get(tenant)
        if body is None:
            allowed = self.snapshot.tenants[tenant].models
            entries = tuple(
                ModelEntry(name, spec.created_s, spec.owned_by)
                for name, spec in sorted(self.snapshot.models.items())
                if selects(allowed, name)
            )
            body = self._models[tenant] = models_body(entries)
        return body

"""One region core: everything it is made of, in one process and one event loop."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from random import Random

import msgspec

from region_core import relaying
from region_core.answers import Answers, Terms
from region_core.answers_redis import RedisAnswers
from region_core.engine.base import Engine
from region_core.engine.base import Limits as EngineLimits
from region_core.engine.channel import Setup
from region_core.engine.sim import SimEngine
from region_core.errors import WrongRole
from region_core.ingress.http import HttpApp
from region_core.ingress.listener import Listener
from region_core.ingress.overlay import OverlayIngress
from region_core.prepare import Offer
from region_core.report import forecast_samples, overload_samples, samples
from region_core.scheduling.batcher import Limits
from region_core.service import CoreService
from region_core.settings import CoreSettings
from runtime import logs
from runtime.clock import Clock, SystemClock
from runtime.identity import Identity
from runtime.identity_watch import IdentityWatch
from runtime.metrics import Metrics, Sample
from runtime.shutdown import Shutdown
from topology.overlay.server import OverlayServer
from topology.resources import ModelSpec
from topology.snapshot import Snapshot
from topology.wire.ads_client import AdsClient, OnSnapshot
from topology.wire.membership_client import MembershipClient, Report

log = logs.get("core")

SOCKETS = 16_384  # file descriptors: many systems begin with 1,024
CLOSING_S = 5.0  # on top of the requests' grace: the engine's step, the listeners


class Core:
    """Build it in a running loop with an engine that is ready; `start`, then `close` once."""

    def __init__(self, settings: CoreSettings, engine: Engine, clock: Clock, rng: Random) -> None:
        self._settings = settings
        self.identities = IdentityWatch(Identity.load(settings.identity), clock)
        self._identity = self.identities.current
        if self._identity.principal.role != "core":
            raise WrongRole(str(self._identity.principal))
        self._clock = clock
        self.metrics = Metrics()
        limits, offer = limits_of(settings), offer_of(settings, engine)
        scheduling = settings.scheduling
        self.service = CoreService(
            engine,
            offer,
            limits,
            clock,
            rng,
            queue_target_s=scheduling.queue_target_ms / 1000,
            protect=scheduling.protect,
        )
        self.service.answers = answers = _answers(settings, self.service, clock)
        if answers is not None:
            self.metrics.watch(answers.samples)
        self.ingress = OverlayIngress(self.service, settings.region, clock)
        self.overlay: OverlayServer | None = None
        self.http: Listener | None = None
        self.snapshot = Snapshot.empty()
        self._ads = _follow(settings, self._identity, self._use, clock, rng)
        self._member = _register(settings, self._identity, self.presence, clock, rng)
        self._ids = _RequestIds(rng)
        self.metrics.watch(self._samples)
        self.metrics.watch(self.identities.samples)

    async def start(self) -> None:
        settings = self._settings
        self.service.start()
        self.overlay = await OverlayServer.serve(
            settings.overlay.host,
            settings.overlay.port,
            self._identity,
            self.ingress.on_exchange,
            settings=settings.overlay_server,
            clock=self._clock,
            stalled=lambda: self.service.stalled,
            route=self._route,
            relay=settings.relay,
        )
        self.identities.on_change(self.overlay.use)
        self.identities.start()
        if settings.http is not None:
            app = HttpApp(
                self.service, settings.region, self._clock, self.metrics.expose, self._ids.next
            )
            self.http = Listener(app, settings.http.host, settings.http.port)
            self.http.start()
        if self._ads is not None:
            self._ads.start()
        if self._member is not None:
            self._member.start()
        log.info(
            "serving",
            region=settings.region,
            model=settings.model,
            engine=self.service.engine.description.engine,
            overlay=f"{settings.overlay.host}:{self.overlay.port}",
        )

    async def close(self) -> None:
        """Refuse what is new, finish what is under way within the grace, let everything go."""
        grace_s = self._settings.shutdown_grace_ms / 1000
        await self.service.drain(grace_s)  # what heartbeats say meanwhile
        if self.service.answers is not None:
            await self.service.answers.close()
        if self._member is not None:
            await self._member.close()
        if self.overlay is not None:
            await self.overlay.close(0.5)
        if self.http is not None:
            await self.http.stop()
        if self._ads is not None:
            await self._ads.close()
        await self.identities.close()

    def presence(self) -> Report:
        """What this core says of itself in its heartbeats."""
        report, overlay = self.service.report(), self._settings.overlay
        port = self.overlay.port if self.overlay is not None else overlay.port
        return Report(
            healthy=report.healthy,
            draining=report.draining,
            addresses=(f"{overlay.host}:{port}",),
            orca=report.orca_report(),
        )

    def _use(self, snapshot: Snapshot) -> None:
        """Follow the configuration's limits. A core serves what it holds, whatever it says."""
        self.snapshot = snapshot
        if self.overlay is not None and self.overlay.relay is not None:
            self.overlay.relay.review()
        spec = snapshot.models.get(self._settings.model)
        own = offer_of(self._settings, self.service.engine)
        self.service.offer = own if spec is None else narrowed(own, spec)
        if self.service.answers is not None:
            self.service.answers.use(Terms.of(spec, snapshot.policy))
        self.service.aim(snapshot.policy.overload.queue_target_ms / 1000)
        if spec is None or self._settings.region not in spec.regions:
            log.warning(
                "the configuration does not send this model here",
                model=self._settings.model,
                region=self._settings.region,
                revision=snapshot.revision,
            )
        log.info("configuration", revision=snapshot.revision)

    def _route(self, region: str, turn: int) -> str | None:
        return relaying.address_of(self.snapshot, self._settings.region, region, turn)

    def _samples(self) -> Iterable[Sample]:
        service = self.service
        yield from samples(service.report(), service.counters, service.steps)
        yield from forecast_samples(service.forecast, service.waiting_by_urgency)
        yield from overload_samples(service.level, service.preemptions)
        said = self.service.engine.description
        labels = {"engine": said.engine, "device": said.device, "dtype": said.dtype}
        yield Sample("tradewind_core_engine", "What runs here.", 1, labels)
        yield Sample("tradewind_core_revision", "Of the configuration.", self.snapshot.revision)
        if self._ads is not None:
            connected = self._ads.status.connected
            yield Sample(
                "tradewind_core_control_plane_connected", "Whether it is heard.", connected
            )
            failed = self._ads.disk_failures
            yield Sample("tradewind_core_disk_failures_total", "Failed writes to disk.", failed)
        if self._member is not None:
            registered = self._member.status.registered
            yield Sample("tradewind_core_registered", "Whether it is in the registry.", registered)
        if self.overlay is not None:
            counters = self.overlay.counters
            for name in counters.__struct_fields__:
                text = "Of the overlay server."
                yield Sample(f"tradewind_core_overlay_{name}_total", text, getattr(counters, name))
            if self.overlay.relay is not None:
                yield from relaying.samples(self.overlay.relay)


def _answers(settings: CoreSettings, service: CoreService, clock: Clock) -> Answers | None:
    """None where it is turned off, or an answer costs nothing."""
    asked, engine = settings.answers, service.engine
    instant = isinstance(engine, SimEngine) and engine.instant
    if not asked.enabled or not settings.scheduling.protect or instant:
        return None
    redis = RedisAnswers(asked.redis, clock) if asked.redis is not None else None
    return Answers(
        identity_of(settings, engine),
        lambda: service.offer,
        lambda: (service.shedding.queue_ms, service.load),
        clock,
        redis,
        anonymous=asked.anonymous,
    )


def identity_of(settings: CoreSettings, engine: Engine) -> str:
    """Stands for what runs here: another identity, other answers."""
    runs = settings.sim if settings.engine == "sim" else settings.torch.weights
    parts = (engine.description, runs)
    return msgspec.json.encode(msgspec.to_builtins(parts, enc_hook=str)).decode()


class _RequestIds:
    """Names for requests that come over HTTP."""

    def __init__(self, rng: Random) -> None:
        self._prefix = f"{rng.getrandbits(48):012x}"
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count:06x}"


def limits_of(settings: CoreSettings) -> Limits:
    asked = settings.scheduling
    return Limits(
        slots=asked.slots,
        step_tokens=max(asked.step_tokens, asked.slots + asked.chunk_tokens),
        chunk_tokens=asked.chunk_tokens,
        waiting=asked.waiting,
        preemptions=asked.preemptions,
    )


def offer_of(settings: CoreSettings, engine: Engine) -> Offer:
    asked = settings.scheduling
    return Offer(
        settings.model,
        engine.limits.context_tokens,
        min(asked.max_output_tokens, engine.limits.context_tokens),
        asked.default_output_tokens,
    )


def narrowed(own: Offer, spec: ModelSpec) -> Offer:
    """What this core offers of a model that the configuration describes."""
    return msgspec.structs.replace(
        own,
        context_tokens=min(own.context_tokens, spec.context_tokens),
        max_output_tokens=min(own.max_output_tokens, spec.context_tokens),
        default_output_tokens=spec.default_output_tokens,
    )


def make_engine(settings: CoreSettings) -> Engine:
    """The engine that the settings ask for, ready to run. Takes seconds; blocks."""
    asked = settings.scheduling
    limits = EngineLimits(asked.slots, asked.context_tokens)
    if settings.engine == "sim":
        log.warning("this core is simulated: engine `sim` runs no model")
        return SimEngine(settings.sim, limits, settings.model)
    from region_core.engine.process import ProcessEngine

    weights = settings.torch.weights
    setup = Setup(
        weights=str(weights.path) if weights.path else None,
        sha256=weights.sha256,
        cache_dir=str(weights.cache_dir) if weights.cache_dir else None,
        dtype=settings.torch.dtype if settings.torch.quantise == "none" else "int8",
        limits=limits,
        device=settings.torch.device,
        threads=settings.torch.threads or len(os.sched_getaffinity(0)),
        pack=settings.torch.pack,
        process=f"core-{settings.display_name}-engine",
        log_level=settings.log_level,
    )
    return ProcessEngine(setup)


def _follow(
    settings: CoreSettings, identity: Identity, use: OnSnapshot, clock: Clock, rng: Random
) -> AdsClient | None:
    if not settings.control_plane:
        return None
    last_good = settings.state_dir / "last-good.json" if settings.state_dir else None
    node = f"core/{settings.display_name}"
    return AdsClient(node, settings.control_plane, identity, last_good, use, clock, rng)


def _register(
    settings: CoreSettings,
    identity: Identity,
    report: Callable[[], Report],
    clock: Clock,
    rng: Random,
) -> MembershipClient | None:
    if not settings.control_plane:
        return None
    node = f"core/{settings.display_name}"
    return MembershipClient(node, settings.control_plane, lambda: identity, report, clock, rng)


def _allow_sockets() -> None:
    """As many file descriptors as the system lets us have, up to what a full relay needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SOCKETS if hard == resource.RLIM_INFINITY else min(SOCKETS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def run(settings: CoreSettings, engine: Engine) -> None:
    """Run a core until SIGTERM or SIGINT."""
    _allow_sockets()
    grace_s = settings.shutdown_grace_ms / 1000
    shutdown = Shutdown(grace_s + CLOSING_S)
    core = Core(settings, engine, SystemClock(), Random())
    await core.start()
    shutdown.add("core", core.close)
    await shutdown.wait()
    log.info("stopped")

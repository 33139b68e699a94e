"""What a core says about its load, to edges, to metrics and to the director.

The names follow ORCA (Open Request Cost Aggregation, xds.data.orca.v3.OrcaLoadReport), so that
Envoy and gRPC clients read them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport

from region_core.scheduling.forecast import Forecast
from runtime.metrics import Sample
from topology.cursor import ALL_ADMITTED


class LoadReport(Struct, frozen=True):
    """A moment of a core. `load` is sequences, running and waiting, per slot: 1 is full."""

    running: int
    waiting: int
    slots: int
    waiting_limit: int
    tokens_per_s: float  # of answers, over the last seconds
    requests_per_s: float  # taken on
    load: float
    draining: bool
    healthy: bool
    stalled: bool = False  # it has work and finishes no step

    def orca(self) -> dict[str, float]:
        """The report under ORCA's names; our own are `named_metrics`."""
        return {
            "application_utilization": round(self.load, 4),
            "rps_fractional": round(self.requests_per_s, 3),
            "named_metrics.tradewind.running": float(self.running),
            "named_metrics.tradewind.waiting": float(self.waiting),
            "named_metrics.tradewind.slots": float(self.slots),
            "named_metrics.tradewind.tokens_per_s": round(self.tokens_per_s, 2),
        }

    def orca_report(self) -> bytes:
        """The same as an xds.data.orca.v3.OrcaLoadReport, for the control plane."""
        figures = self.orca()
        report = OrcaLoadReport(
            application_utilization=figures.pop("application_utilization"),
            rps_fractional=figures.pop("rps_fractional"),
        )
        for name, value in figures.items():
            report.named_metrics[name.removeprefix("named_metrics.")] = value
        data: bytes = report.SerializeToString()
        return data

    def orca_header(self) -> str:
        """For the response header `endpoint-load-metrics`, in its TEXT form."""
        return "TEXT " + ", ".join(f"{name}={value:g}" for name, value in self.orca().items())


class Counters:
    """What a core has done since it started; plain integers, read at scrape time."""

    __slots__ = (
        "accepted", "cancelled", "completion_tokens", "failed", "finished", "overloads",
        "prompt_tokens", "shed", "sink_errors",
    )  # fmt: skip

    def __init__(self) -> None:
        self.accepted = 0
        self.cancelled = 0
        self.finished: dict[str, int] = {"stop": 0, "length": 0}
        self.failed: dict[str, int] = {}
        self.overloads: dict[str, int] = {}  # failed for want of room or time, by cause
        self.shed: dict[str, int] = {}  # refused by level, by tier
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.sink_errors = 0


class StepFigures(Struct):
    """What the engine's thread has done."""

    steps: int = 0
    faults: int = 0
    busy_s: float = 0.0
    tokens: int = 0  # through the model, input and output
    largest_batch: int = 0


def samples(report: LoadReport, counters: Counters, steps: StepFigures) -> Iterable[Sample]:
    """A core's figures for Prometheus."""
    gauge = "tradewind_core_"
    yield Sample(gauge + "running", "Sequences that hold a slot.", report.running)
    yield Sample(gauge + "slots", "Sequences that can run at once.", report.slots)
    yield Sample(gauge + "waiting", "Requests that wait for a slot.", report.waiting)
    yield Sample(gauge + "waiting_limit", "Requests that may wait.", report.waiting_limit)
    yield Sample(gauge + "load", "Sequences per slot; 1 is full.", report.load)
    yield Sample(gauge + "tokens_per_s", "Answer tokens a second, lately.", report.tokens_per_s)
    yield Sample(gauge + "draining", "1 while shutting down.", report.draining)
    yield Sample(gauge + "healthy", "0 when the engine keeps failing.", report.healthy)
    yield Sample(gauge + "stalled", "1 while no step of the engine ends.", report.stalled)
    yield Sample(gauge + "accepted_total", "Requests taken on.", counters.accepted)
    yield Sample(gauge + "cancelled_total", "Requests that clients gave up.", counters.cancelled)
    for reason, count in counters.finished.items():
        yield Sample(gauge + "finished_total", "Answers given.", count, {"reason": reason})
    for code, count in counters.failed.items():
        yield Sample(gauge + "failed_total", "Requests that failed.", count, {"code": code})
    for cause, count in counters.overloads.items():
        yield Sample(gauge + "refused_total", "For want of room or time.", count, {"cause": cause})
    for tier, count in counters.shed.items():
        yield Sample(gauge + "shed_total", "Refused by level.", count, {"tier": tier})
    yield Sample(gauge + "prompt_tokens_total", "Of requests taken on.", counters.prompt_tokens)
    yield Sample(gauge + "completion_tokens_total", "Given out.", counters.completion_tokens)
    yield Sample(gauge + "sink_errors_total", "Ingress errors.", counters.sink_errors)
    yield Sample(gauge + "steps_total", "Steps of the engine.", steps.steps)
    yield Sample(gauge + "step_tokens_total", "Tokens through the model.", steps.tokens)
    yield Sample(gauge + "step_seconds_total", "Time spent in steps.", steps.busy_s)
    yield Sample(gauge + "engine_faults_total", "Steps that failed.", steps.faults)
    yield Sample(gauge + "largest_batch", "Most sequences in one step.", steps.largest_batch)


def forecast_samples(forecast: Forecast, waiting: Sequence[int]) -> Iterable[Sample]:
    """How well the core foresees, and who waits, by urgency."""
    gauge = "tradewind_core_"
    for urgency, count in enumerate(waiting):
        labels = {"urgency": str(urgency)}
        yield Sample(gauge + "queue", "Requests that wait, by urgency.", count, labels)
    accuracy, steps = forecast.accuracy, forecast.steps
    yield Sample(
        gauge + "forecast_first_tokens_total",
        "First tokens, of requests that had to wait, that were compared with their forecast.",
        accuracy.first_tokens,
    )
    yield Sample(
        gauge + "forecast_late_total",
        "Of those, how many came later than what admission went by.",
        accuracy.late,
    )
    yield Sample(
        gauge + "forecast_error_s",
        "Mean difference of first tokens from their forecast, lately.",
        accuracy.error_s,
    )
    yield Sample(
        gauge + "first_token_s", "Mean time to those first tokens, lately.", accuracy.waited_s
    )
    yield Sample(
        gauge + "forecast_margin", "What admission multiplies forecasts by.", forecast.margin
    )
    yield Sample(gauge + "step_s", "What a step of one sequence should take.", steps.seconds(1))
    yield Sample(
        gauge + "input_token_s", "What a token of input should add to a step.", steps.token_s
    )


def overload_samples(level: int, preemptions: int) -> Iterable[Sample]:
    """Whom the core takes on, and who had to wait for others."""
    gauge = "tradewind_core_"
    text = f"Requests whose cursor is below it are admitted; {ALL_ADMITTED} is all."
    yield Sample(gauge + "level", text, level)
    text = "Sequences that gave up their slot to a VIP."
    yield Sample(gauge + "preemptions_total", text, preemptions)

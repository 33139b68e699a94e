"""The torch engine against transformers' `generate`, on the same weights, in the same run.

    python -m benchmarks.engine [--json FILE] [--runs 3] [--threads 2]

Ours is measured through the whole core service: queue, batcher, engine process, text. `generate`
gets tokens in and gives tokens out, in bfloat16 and in float32; the ratio is to the faster one.
With unequal lengths `generate` does what it can: one static batch, padded on the left, run
until the longest answer is whole; only tokens that were asked for count, on both sides. End
tokens end nothing, so that both make exactly as many tokens.

"Per core" is tokens per second of CPU time, which other work on the machine disturbs less.

Before anything is timed, both must give the same greedy answers in float32.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from region_core.engine.process import ENVIRONMENT, ProcessEngine

os.environ.update(ENVIRONMENT | os.environ)  # the same for both sides, before torch is in

import torch

from benchmarks.harness import Report, Sample, arguments, cpu_s, median, say, take_turns
from region_core.engine.base import Begin, Engine, FinishReason, Limits, Sampling
from region_core.engine.channel import Setup
from region_core.engine.torch import TorchEngine
from region_core.job import Failed, Job
from region_core.prepare import Offer
from region_core.scheduling.batcher import Limits as BatchLimits
from region_core.scheduling.plan import Chunk, Step
from region_core.service import CoreService
from region_core.weights.bundle import Dtype, open_bundle
from runtime.clock import SystemClock
from tests.region_core.reference import transformers_greedy, transformers_model
from topology.wire.chat import ChatRequest, Message

SLOTS = 16
CONTEXT = 1024
TOPICS = (
    "a dragon", "the sea", "a lighthouse keeper", "two friends", "a lost key", "winter",
    "the market", "a train", "an old map", "the first snow", "a robot", "a garden",
    "the night sky", "a violin", "a storm", "the desert",
)  # fmt: skip
QUESTIONS = (
    "What is the capital of Germany?",
    "List three fruits.",
    "Who wrote Hamlet?",
    "Why is the sky blue?",
)

Work = Sequence[tuple[str, int]]  # what is asked, and how many tokens to answer with


def equal(count: int, tokens: int) -> Work:
    return [(f"Write a long story about {TOPICS[n % 16]}.", tokens) for n in range(count)]


def unequal(count: int) -> Work:
    """Prompts of 40 to 250 tokens, answers of 16 to 96, in no order."""
    work = []
    for n in range(count):
        told = " ".join(f"Remember {TOPICS[(n + k) % 16]}." for k in range((n * 5) % 16 * 2))
        work.append((f"{told} Write a long story about {TOPICS[n]}.", 16 + (n * 7) % 16 * 80 // 15))
    return work


def direct(dtype: Dtype, threads: int) -> TorchEngine:
    """The engine in this process, to be driven step by step."""
    bundle = open_bundle(None, None, None, dtype)
    return TorchEngine(bundle, Limits(1, CONTEXT), "cpu", threads)


class Count:
    """A sink that counts tokens."""

    def __init__(self) -> None:
        self.tokens_seen = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def accepted(self, queue_ms: float, load: float) -> None: ...

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None:
        self.tokens_seen += len(ids)

    def end(
        self,
        finish_reason: FinishReason,
        prompt_tokens: int,
        completion_tokens: int,
        age_s: float | None = None,
    ) -> None:
        self.over.set_result(None)

    def failed(self, failed: Failed) -> None:
        self.over.set_exception(RuntimeError(failed.message))


class Ours:
    """The core service around the torch engine."""

    def __init__(
        self,
        threads: int,
        loop: asyncio.AbstractEventLoop,
        dtype: Dtype = "bfloat16",
        slots: int = SLOTS,
    ) -> None:
        self._loop = loop
        self._slots = slots
        limits = Limits(slots, CONTEXT)
        setup = Setup(None, None, None, dtype, limits, "cpu", threads, True, "engine", "warning")
        self.engine = ProcessEngine(setup)
        self.engine.tokenizer.end_ids = frozenset()
        loop.run_until_complete(self._start())

    async def _start(self) -> None:
        limits = BatchLimits(slots=self._slots, step_tokens=512, chunk_tokens=256, waiting=64)
        offer = Offer("m", CONTEXT, CONTEXT, 64)
        self._service = CoreService(self.engine, offer, limits, SystemClock())
        self._service.start()

    def run(self, work: Work) -> Sample:
        return self._loop.run_until_complete(self._run(work))

    def close(self) -> None:
        self._loop.run_until_complete(self._service.drain(0.0))

    async def _run(self, work: Work) -> Sample:
        steps = self._service.steps
        before = msgspec.structs.replace(steps)
        cpu = self._cpu_s()
        started = time.perf_counter()
        sinks = []
        for number, (text, tokens) in enumerate(work):
            request = ChatRequest(
                model="m", messages=(Message("user", text),), temperature=0.0, max_tokens=tokens
            )
            job = Job(request=request, request_id=str(number), deadline_s=float("inf"))
            sinks.append(Count())
            self._service.submit(job, sinks[-1])
        await asyncio.gather(*(sink.over for sink in sinks))
        wall_s = time.perf_counter() - started
        made = sum(sink.tokens_seen for sink in sinks)
        assert made == sum(tokens for _, tokens in work)
        notes = {"ms a step": 1000 * (steps.busy_s - before.busy_s) / (steps.steps - before.steps)}
        return Sample(made / wall_s, (self._cpu_s() - cpu) / wall_s, notes=notes)

    def _cpu_s(self) -> float:
        assert self.engine.pid is not None
        return time.process_time() + cpu_s(self.engine.pid)


class Generate:
    """transformers' `generate`, greedy, one static batch."""

    def __init__(self, dtype: torch.dtype, encode: Callable[[str], tuple[int, ...]]) -> None:
        self.model = transformers_model(dtype)
        self._encode = encode

    def run(self, work: Work) -> Sample:
        prompts = [self._encode(text) for text, _ in work]
        longest = max(map(len, prompts))
        ids = torch.full((len(work), longest), 2)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        most = max(tokens for _, tokens in work)
        cpu = time.process_time()
        started = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=most,
                min_new_tokens=most,
                do_sample=False,
                eos_token_id=None,
            )
        wall_s = time.perf_counter() - started
        assert out.shape[1] == longest + most
        cores = (time.process_time() - cpu) / wall_s
        return Sample(sum(tokens for _, tokens in work) / wall_s, cores)


def encoder(engine: Engine) -> Callable[[str], tuple[int, ...]]:
    return lambda text: engine.tokenizer.encode_chat([Message("user", text)])


def greedy(engine: TorchEngine, prompt: tuple[int, ...], tokens: int) -> list[int]:
    engine.begin(Begin(0, prompt, (), Sampling(0.0)))
    out = [engine.step(Step((Chunk(0, 0, len(prompt), True),)))[0]]
    while len(out) < tokens and out[-1] not in engine.tokenizer.end_ids:
        out.append(engine.step(Step((), (0,)))[0])
    engine.release(0)
    return out


def agreement(models: dict[str, Any], threads: int, tokens: int = 32) -> str:
    """Refuse to go on unless both give the same answers; say what bfloat16 changes."""
    exact, low_precision = direct("float32", threads), direct("bfloat16", threads)
    encode = encoder(exact)
    prompts = [encode(text) for text in QUESTIONS + tuple(f"Tell me of {t}." for t in TOPICS[:4])]
    expected = [transformers_greedy(models["float32"], prompt, tokens) for prompt in prompts]
    ours = [greedy(exact, prompt, tokens) for prompt in prompts]
    if ours != expected:
        raise SystemExit("the greedy answers differ in float32: nothing was measured")
    low = [greedy(low_precision, prompt, tokens) for prompt in prompts]
    theirs = [transformers_greedy(models["bfloat16"], prompt, tokens) for prompt in prompts]
    same, same_theirs = (
        sum(one == other for one, other in zip(answers, expected, strict=True))
        for answers in (low, theirs)
    )
    return (
        f"greedy answers of up to {tokens} tokens: ours in float32 equal generate's in float32, "
        f"{len(prompts)} of {len(prompts)}; in bfloat16 ours equal them in {same}, "
        f"generate's own in {same_theirs}"
    )


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], runs=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    loop = asyncio.new_event_loop()
    ours = Ours(given.threads, loop)
    encode = encoder(ours.engine)
    peers = {
        "bfloat16": Generate(torch.bfloat16, encode),
        "float32": Generate(torch.float32, encode),
    }
    report = Report("engine", unit="tokens/s")
    models = {name: peer.model for name, peer in peers.items()}
    report.note(agreement(models, given.threads))
    torch.set_num_threads(given.threads)
    report.note(f"torch {torch.__version__}, {given.threads} threads, greedy; ours in bfloat16")
    scenarios: dict[str, Work] = {
        "alone": equal(1, 64),
        "8 sequences": equal(8, 48),
        "16 unequal": unequal(16),
    }
    for name, work in scenarios.items():
        sides: dict[str, Callable[[], Sample]] = {"ours": lambda w=work: ours.run(w)}  # type: ignore[misc]
        for dtype, peer in peers.items():
            sides[f"generate {dtype}"] = lambda w=work, p=peer: p.run(w)  # type: ignore[misc]
        taken = take_turns(sides, given.runs)
        report.add(name, taken)
        best = max(
            median(taken[side], lambda s: s.value) or 0.0 for side in sides if side != "ours"
        )
        ratio = (median(taken["ours"], lambda s: s.value) or 0.0) / best
        report.ratios[f"{name}/generate"] = round(ratio, 4)
        say(f"  {name}: ours is {ratio:.2f} times generate at its best")
    report.ratios["generate"] = report.ratios["alone/generate"]
    report.finish(given.json)
    ours.close()
    loop.close()


if __name__ == "__main__":
    main()

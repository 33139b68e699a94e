"""The engine that runs a model here: torch on a CPU or on CUDA."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
from msgspec import Struct

from region_core.engine.attention_plan import Block, blocks, runs
from region_core.engine.base import Begin, Description, Limits, Sampling, Tokenizer
from region_core.engine.byte_level import ByteLevelTokenizer
from region_core.engine.kv_cache import KeyValueCache
from region_core.engine.llama import Llama, Rows
from region_core.engine.sampling import choose
from region_core.errors import EngineFault, NoDevice
from region_core.scheduling.plan import Chunk, Step
from region_core.weights.bundle import Bundle
from runtime import logs

log = logs.get("engine")


class _Slot:
    """A sequence in its slot: what it is fed, and how far it has come."""

    __slots__ = ("answered", "held", "input", "last", "prompt", "sampling")

    def __init__(self, begin: Begin) -> None:
        self.input = begin.prompt + begin.answer
        self.prompt = len(begin.prompt)
        self.answered = len(begin.answer)  # the index of the token to be sampled next
        self.sampling: Sampling = begin.sampling
        self.held = 0  # tokens in the cache
        self.last = 0  # the token sampled last, which is not in the cache yet


class _Layout(Struct):
    """A step laid out in rows, still as plain lists."""

    ids: list[int]
    positions: list[int]
    places: list[int]
    blocks: list[Block]
    wanted: list[int]  # rows whose next token is sampled
    sampled: list[int]  # and their slots


def device_of(asked: str) -> str:
    """The device that the settings ask for; `auto` is CUDA where there is one."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise NoDevice("there is no CUDA device here", hint="set torch.device to cpu or auto")
    return asked


class TorchEngine:
    """`Engine` over `Llama`. One thread at a time may call it."""

    def __init__(
        self, bundle: Bundle, limits: Limits, device: str, threads: int, *, pack: bool = True
    ) -> None:
        """`threads` are torch's, for a CPU; they are set for the whole process. `pack`: see
        `Llama`."""
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self.limits = limits
        card = bundle.card
        self.tokenizer: Tokenizer = ByteLevelTokenizer(bundle.tokenizer, card)
        self._model = Llama(bundle.weights, card, limits.context_tokens, self._device, pack)
        self._cache = KeyValueCache(
            card.layers,
            limits.slots,
            limits.context_tokens,
            card.kv_heads,
            card.head_width,
            self._model.dtype,
            self._device,
        )
        self._slots: dict[int, _Slot] = {}
        name = "int8" if self._model.quantised else str(self._model.dtype).removeprefix("torch.")
        self.description = Description("torch", card.title, device, name)
        log.info("engine", packed=self._model.packed, **msgspec.structs.asdict(self.description))

    def begin(self, sequence: Begin) -> None:
        self._slots[sequence.slot] = _Slot(sequence)

    def release(self, slot: int) -> None:
        state = self._slots.pop(slot, None)
        if state is not None:
            self._cache.forget(slot, state.held)

    def close(self) -> None:
        self._slots.clear()

    @torch.inference_mode()
    def step(self, step: Step) -> Mapping[int, int]:
        layout = self._lay_out(step)
        try:
            tokens = self._run(step, layout)
        except RuntimeError as error:
            raise EngineFault(f"the model could not run a step: {error}") from error
        for slot, token in zip(layout.sampled, tokens, strict=True):
            state = self._slots[slot]
            state.last = token
            state.answered += 1
        return dict(zip(layout.sampled, tokens, strict=True))

    def _lay_out(self, step: Step) -> _Layout:
        layout = _Layout([], [], [], [], [], [])
        for slot in step.decodes:
            state = self._slots[slot]
            layout.wanted.append(len(layout.ids))
            layout.sampled.append(slot)
            layout.ids.append(state.last)
            layout.positions.append(state.held)
            layout.places.append(self._cache.place(slot, state.held))
            state.held += 1
        for chunk in step.chunks:
            self._lay_chunk(chunk, layout)
        return layout

    def _lay_chunk(self, chunk: Chunk, layout: _Layout) -> None:
        state = self._slots[chunk.slot]
        stop = chunk.start + chunk.count
        place = self._cache.place(chunk.slot, 0)
        layout.blocks += blocks(len(layout.ids), chunk.slot, chunk.start, chunk.count, state.prompt)
        layout.ids += state.input[chunk.start : stop]
        layout.positions += range(chunk.start, stop)
        layout.places += range(place + chunk.start, place + stop)
        state.held = stop
        if chunk.last:
            layout.wanted.append(len(layout.ids) - 1)
            layout.sampled.append(chunk.slot)

    def _run(self, step: Step, layout: _Layout) -> list[int]:
        whole = torch.tensor([layout.ids, layout.positions, layout.places], device=self._device)
        ids, positions, places = whole.unbind(0)
        lengths = [position + 1 for position in layout.positions[: len(step.decodes)]]
        rows = Rows(ids, positions, places, runs(step.decodes, lengths), layout.blocks)
        wanted = torch.tensor(layout.wanted, dtype=torch.int64, device=self._device)
        hidden = self._model.hidden(rows, self._cache, wanted)
        if not layout.wanted:
            return []
        states = [self._slots[slot] for slot in layout.sampled]
        return choose(
            self._model.logits(hidden),
            hidden,
            self._model.head,
            [state.sampling for state in states],
            [state.answered for state in states],
        )

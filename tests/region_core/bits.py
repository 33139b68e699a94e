"""Digests of hidden states, to be compared bit by bit. Run as a program, it prints them.

python -m tests.region_core.bits <threads> <bundle's folder>
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from region_core.engine.base import Begin, Limits, Sampling
from region_core.engine.torch import TorchEngine
from region_core.scheduling.plan import Chunk, Step
from region_core.weights.bundle import Bundle, read_card
from topology.wire.chat import Message

GREEDY = Sampling(temperature=0.0)
LENGTHS = (1, 12, 40, 75)  # of prompts, in sentences; up to 400 tokens
TOKENS = 12
CUT = 7  # tokens that are replayed


class Watched:
    """An engine whose hidden states are kept, by slot."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.engine = TorchEngine(bundle, Limits(len(LENGTHS), 1024), "cpu", threads)
        self.seen: list[torch.Tensor] = []
        hidden = self.engine._model.hidden

        def watch(rows: object, cache: object, wanted: torch.Tensor) -> torch.Tensor:
            out = hidden(rows, cache, wanted)  # type: ignore[arg-type]
            self.seen.append(out.clone())
            return out

        self.engine._model.hidden = watch  # type: ignore[method-assign, assignment]

    def prompts(self) -> list[tuple[int, ...]]:
        encode = self.engine.tokenizer.encode_chat
        return [encode([Message("user", "Tell me of ships. " * count)]) for count in LENGTHS]

    def alone(
        self,
        prompt: Sequence[int],
        count: int,
        answer: Sequence[int] = (),
        chunk: int = 10_000,
        slot: int = 0,
    ) -> tuple[torch.Tensor, list[int]]:
        """Hidden states `[count, width]` and tokens of a sequence that runs by itself."""
        self.seen.clear()
        engine, total = self.engine, len(prompt) + len(answer)
        engine.begin(Begin(slot, tuple(prompt), tuple(answer), GREEDY))
        tokens: list[int] = []
        for start in range(0, total, chunk):
            size = min(chunk, total - start)
            done = engine.step(Step((Chunk(slot, start, size, start + size == total),)))
            tokens += done.values()
        while len(tokens) < count:
            tokens += engine.step(Step((), (slot,))).values()
        engine.release(slot)
        return torch.cat([state for state in self.seen if len(state)]), tokens

    def together(self, prompts: Sequence[Sequence[int]], count: int) -> torch.Tensor:
        """The same in one batch: `[prompts, count, width]`."""
        self.seen.clear()
        slots = range(len(prompts))
        for slot in slots:
            self.engine.begin(Begin(slot, tuple(prompts[slot]), (), GREEDY))
        self.engine.step(Step(tuple(Chunk(slot, 0, len(prompts[slot]), True) for slot in slots)))
        for _ in range(count - 1):
            self.engine.step(Step((), tuple(slots)))
        for slot in slots:
            self.engine.release(slot)
        return torch.stack(self.seen, 1)


def digests(state: torch.Tensor) -> list[str]:
    """One for each row of `[rows, width]` in bfloat16."""
    rows = state.contiguous().view(torch.int16).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rows]


def measure(bundle: Bundle, threads: int) -> dict[str, list[list[str]]]:
    """Digests of each prompt's states, got in several ways that must not matter."""
    watched = Watched(bundle, threads)
    prompts = watched.prompts()
    found: dict[str, list[list[str]]] = {"alone": [], "in chunks of 37": [], "of 5": []}
    replayed: list[list[str]] = []
    for prompt in prompts:
        state, tokens = watched.alone(prompt, TOKENS)
        found["alone"].append(digests(state))
        found["in chunks of 37"].append(digests(watched.alone(prompt, TOKENS, chunk=37)[0]))
        found["of 5"].append(digests(watched.alone(prompt, TOKENS, chunk=5, slot=2)[0]))
        rest, _ = watched.alone(prompt, TOKENS - CUT, tokens[:CUT], chunk=37, slot=3)
        replayed.append(digests(state)[:CUT] + digests(rest))
    found["replayed"] = replayed
    found["together"] = [digests(state) for state in watched.together(prompts, TOKENS)]
    return found


def main() -> None:
    folder = Path(sys.argv[2])
    found = measure(Bundle(folder, read_card(folder)), int(sys.argv[1]))
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()

"""The real model: what it answers, and how exactly it does so."""

from __future__ import annotations

import pytest
import torch

from region_core.engine.base import Begin, Engine, Limits
from region_core.engine.torch import TorchEngine
from region_core.scheduling.plan import Chunk, Step
from region_core.weights.bundle import Bundle, open_bundle
from tests.region_core.conftest import torch_engine
from tests.region_core.driving import GREEDY, alone
from tests.region_core.world import World
from topology.wire.chat import Message

pytestmark = pytest.mark.model

QUESTIONS = (
    "What is the capital of Germany?",
    "List three fruits.",
    "Who wrote Hamlet?",
    "Why is the sky blue?",
)


@pytest.fixture(scope="module")
def model(real_bundle: Bundle) -> Engine:
    return torch_engine(real_bundle, Limits(8, 1024))


def asked(engine: Engine, text: str) -> tuple[int, ...]:
    return engine.tokenizer.encode_chat([Message("user", text)])


async def test_it_knows_berlin(model: Engine) -> None:
    async with World(model) as world:
        got = await world.answer("What is the capital of Germany?", max_tokens=30)
        assert "Berlin" in got.text and got.finish == "stop"
        assert got.text == "The capital of Germany is Berlin."
        assert got.usage == (37, 7)


async def test_emoji_come_whole(model: Engine) -> None:
    async with World(model) as world:
        got = await world.answer("Repeat exactly: 🙂🌊👍🏽 ⛵", max_tokens=30)
        assert all("\ufffd" not in piece for piece in got.pieces)


def test_float32_agrees_with_transformers_token_for_token() -> None:
    """Same weights, same prompts, greedy: our forward pass is theirs."""
    from tests.region_core.reference import transformers_greedy, transformers_model

    torch.set_num_threads(1)
    reference = transformers_model(torch.float32)
    engine = TorchEngine(open_bundle(None, None, None, "float32"), Limits(2, 512), "cpu", 1)
    for text in QUESTIONS:
        prompt = asked(engine, text)
        expected = transformers_greedy(reference, prompt, 24)
        assert alone(engine, prompt, len(expected)) == expected, text


def test_bfloat16_logits_stay_near_those_of_float32(real_bundle: Bundle) -> None:
    """What bfloat16 costs, as a bound: the first token's logits, in a prompt's context."""
    small = Limits(1, 256)
    engines = [
        TorchEngine(real_bundle, small, "cpu", 1),
        TorchEngine(open_bundle(None, None, None, "float32"), small, "cpu", 1),
    ]
    found = []
    for engine in engines:
        prompt = asked(engine, QUESTIONS[0])
        seen: list[torch.Tensor] = []
        logits = engine._model.logits
        engine._model.logits = lambda hidden, f=logits, to=seen: to.append(f(hidden)) or to[-1]  # type: ignore[method-assign, misc]
        alone(engine, prompt, 1)
        found.append(seen[0].float())
    low, exact = found
    assert float((low - exact).abs().max()) < 0.5
    assert int(low.argmax()) == int(exact.argmax())


def test_a_row_has_the_same_bits_whatever_the_batch(model: Engine) -> None:
    """Hidden states, not only tokens: decoding alone, in a batch, beside input, and replayed.

    True on CPUs where torch's bfloat16 products come from oneDNN with AVX-512; elsewhere the
    engine works, and this property is not promised.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 products by oneDNN here")
    assert isinstance(model, TorchEngine)
    states: dict[int, list[torch.Tensor]] = {}
    hidden = model._model.hidden

    def spy(rows: object, cache: object, wanted: torch.Tensor) -> torch.Tensor:
        out = hidden(rows, cache, wanted)  # type: ignore[arg-type]
        states[0].append(out.clone())
        return out

    model._model.hidden = spy  # type: ignore[method-assign, assignment]
    try:
        prompt, other = asked(model, QUESTIONS[0]), asked(model, "Tell me of the sea. " * 40)
        states[0] = []
        answer = alone(model, prompt, 6)
        expected = torch.cat(states[0])
        # In a batch of three, with input of a fourth taken in beside it.
        for slot in (0, 1, 2):
            model.begin(Begin(slot, prompt, (), GREEDY))
        chunks = [Chunk(slot, 0, len(prompt), True) for slot in (0, 1, 2)]
        model.begin(Begin(5, other, (), GREEDY))
        states[0] = []
        model.step(Step(tuple(chunks)))
        for index in range(5):
            part = (Chunk(5, 30 * index, 30, False),)
            model.step(Step(part, (0, 1, 2)))
        for slot in (0, 1, 2):
            row = torch.stack([state[slot] for state in states[0]])
            assert torch.equal(row, expected)
        # Replayed: the first four tokens were sampled elsewhere.
        for slot in (0, 1, 2, 5):
            model.release(slot)
        states[0] = []
        assert alone(model, prompt, 2, answer=answer[:4]) == answer[4:]
        assert torch.equal(torch.cat(states[0]), expected[4:])
    finally:
        model._model.hidden = hidden  # type: ignore[method-assign]

"""The real model: what it answers, and how exactly it does so."""

from __future__ import annotations

import pytest
import torch

from region_core.engine.base import Engine, Limits
from region_core.engine.torch import TorchEngine
from region_core.weights.bundle import Bundle, open_bundle
from tests.region_core.conftest import torch_engine
from tests.region_core.driving import alone
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

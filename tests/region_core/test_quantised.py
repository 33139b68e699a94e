"""Weights of eight bits: how near they come, and that a row's bits are its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from region_core.engine.attention_plan import blocks
from region_core.engine.base import Limits
from region_core.engine.calibrate import open_quantised
from region_core.engine.llama import Rows
from region_core.engine.process import ENVIRONMENT, ProcessEngine
from region_core.engine.quantised import (
    Quantised,
    any_device,
    can_pack_int8,
    integer_product,
    plain_product,
    quantise,
)
from region_core.engine.torch import TorchEngine
from region_core.weights.bundle import SCALES, Bundle, open_bundle
from region_core.weights.gguf_file import GgufFile, Matrix
from region_core.weights.smoothing import READERS, smoothed
from tests.region_core.conftest import setup_of
from tests.region_core.driving import alone
from topology.wire.chat import Message

CPU = torch.device("cpu")
vnni = pytest.mark.skipif(not can_pack_int8(CPU), reason="no integer products here")
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 80), st.integers(1, 6)).map(
    lambda s: (s[0], s[1], s[2] * 32)
)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def told(weights: Quantised) -> Tensor:
    return weights.rows(torch.arange(len(weights.scales)))


@given(st.integers(0, 1000), SIZES)
def test_each_number_is_within_half_a_step(seed: int, sizes: tuple[int, int, int]) -> None:
    matrix = drawn(seed, sizes[1], sizes[2])
    found = quantise(matrix)
    assert found.numbers.dtype == torch.int8
    assert ((told(found) - matrix).abs() <= found.scales[:, None] * 0.501).all()


@pytest.mark.parametrize("way", ["plain", "any device", pytest.param("integer", marks=vnni)])
@given(seed=st.integers(0, 1000), sizes=SIZES)
def test_products_are_near_those_of_the_numbers(
    way: str, seed: int, sizes: tuple[int, int, int]
) -> None:
    rows, out, wide = sizes
    weights = quantise(drawn(seed, out, wide))
    x = drawn(seed + 1, rows, wide) * torch.logspace(-6, 6, rows)[:, None]
    if way == "integer":
        found = integer_product(weights)(x)
    else:
        found = any_device(x, weights) if way == "any device" else plain_product(weights)(x)
    exact = x @ told(weights).T
    # Of the largest that the sum could be: each input is off by 1/254 of the row's largest at most.
    most = x.abs().amax(1, keepdim=True) * told(weights).abs().sum(1)
    assert found.shape == (rows, out) and found.dtype == torch.float32
    assert ((found - exact).abs() <= most / 250).all()


@vnni
@given(st.integers(0, 1000), SIZES)
def test_a_row_has_the_same_bits_in_any_batch(seed: int, sizes: tuple[int, int, int]) -> None:
    rows, out, wide = sizes
    product = integer_product(quantise(drawn(seed, out, wide)))
    x = drawn(seed + 1, rows, wide) * torch.logspace(-3, 3, rows)[:, None]
    together = product(x)
    assert torch.equal(together, torch.cat([product(x[n : n + 1]) for n in range(rows)]))


@vnni
def test_many_rows_are_taken_in_pieces_and_a_row_of_zeros_stays_one() -> None:
    product = integer_product(quantise(drawn(1, 3072, 1536)))
    x = drawn(2, 64, 1536)
    x[5] = 0.0
    found = product(x)
    assert torch.isfinite(found).all() and not found[5].any()
    assert torch.equal(found[40:41], product(x[40:41]))


def test_the_copy_on_disk_is_made_from_the_files_own_numbers(
    tiny_source: Path, tmp_path: Path
) -> None:
    """Matrices that read a norm were evened out with it: only both together are the file's."""
    bundle = open_quantised(tiny_source, None, tmp_path)
    matrices = dict(GgufFile(tiny_source, "x").matrices(bundle.card))
    with safe_open(str(bundle.weights), "pt") as held:
        assert set(held.keys()) == {*matrices} | {
            n + SCALES for n, m in matrices.items() if m.ndim > 1
        }
        for name, matrix in matrices.items():
            whole = torch.from_numpy(matrix.copy())
            if matrix.ndim == 1:
                continue
            layer, _, part = name.rpartition(".")
            norm = {reader: norm for norm, reader in READERS.items()}.get(part)
            by = torch.ones(whole.shape[1])
            if norm is not None:
                mine = torch.from_numpy(matrices[f"{layer}.{norm}"].copy())
                by = mine / held.get_tensor(f"{layer}.{norm}")
                assert by.max() / by.min() > 1.2
            found = Quantised(held.get_tensor(name), held.get_tensor(name + SCALES))
            expected = quantise(whole * by)
            assert (found.numbers.int() - expected.numbers.int()).abs().max() <= 1, name
            assert torch.allclose(found.scales, expected.scales), name


def test_int8_is_not_made_without_knowing_its_inputs(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inputs"):
        open_bundle(tiny_source, None, tmp_path, "int8")


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40))
def test_evening_out_changes_nothing_but_the_rounding(seed: int, out: int, wide: int) -> None:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Matrix:
        return np.asarray(rng.normal(size=shape), dtype=np.float32)

    norm, reader, other = draw(wide), draw(out, wide), draw(out, wide)
    largest = {"n": np.exp(3 * draw(wide))}
    found = dict(smoothed([("a", other), ("n", norm), ("r", reader), ("b", other)], largest))
    assert list(found) == ["a", "n", "r", "b"]
    assert found["a"] is other and found["b"] is other
    assert np.allclose(found["r"] * found["n"], reader * norm, rtol=1e-4)
    assert (found["n"] * norm >= 0).all()


def test_a_matrix_of_zeros_has_a_scale(tmp_path: Path) -> None:
    found = quantise(torch.zeros(4, 32))
    assert not told(found).any() and np.isfinite(found.scales.numpy()).all()


@pytest.mark.parametrize("pack", [True, False])
def test_a_tiny_model_answers_nearly_as_in_float32(
    tiny_source: Path, tmp_path: Path, pack: bool
) -> None:
    exact = TorchEngine(
        open_bundle(tiny_source, None, tmp_path, "float32"), Limits(2, 256), "cpu", 1
    )
    engine = TorchEngine(
        open_quantised(tiny_source, None, tmp_path), Limits(2, 256), "cpu", 1, pack=pack
    )
    assert engine.description.dtype == "int8"
    states = [first_state(each, "the other inner thing") for each in (exact, engine)]
    difference = (states[0] - states[1]).norm() / states[0].norm()
    assert 0 < difference < 0.05


def first_state(engine: TorchEngine, text: str) -> Tensor:
    """The hidden state from which the first token comes."""
    seen: list[Tensor] = []
    hidden = engine._model.hidden

    def watch(*given: Any) -> Tensor:
        seen.append(hidden(*given))
        return seen[-1]

    engine._model.hidden = watch  # type: ignore[method-assign, assignment]
    alone(engine, engine.tokenizer.encode_chat([Message("user", text)]), 1)
    return seen[0].float()


@pytest.fixture(scope="module")
def int8_bundle() -> Bundle:
    return open_quantised(None, None, None)


@pytest.mark.model
@vnni
def test_the_same_bits(int8_bundle: Bundle) -> None:
    """As tests/region_core/test_bits.py has it for bfloat16: alone, in a batch, in chunks,
    replayed."""
    command = [sys.executable, "-m", "tests.region_core.bits", "2", str(int8_bundle.folder)]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
    )
    found = msgspec.json.decode(done.stdout.splitlines()[-1], type=dict[str, list[list[str]]])
    for way, digests in found.items():
        assert digests == found["alone"], way


STORY = (
    "The lighthouse stood on a rock at the mouth of the harbour, and every evening the keeper "
    "climbed the stairs to light the lamp. One night in winter the wind was so strong that no ship "
    "could leave, and the people of the town came together in the old church to wait until the "
    "storm was over. They told each other stories about the sea, about men who had gone out to "
    "fish and come back rich, and about others who had never come back at all. When the morning "
    "came, the sky was clear again, and the first thing that they saw was a small boat with a "
    "white sail, which was coming slowly towards the land."
)


@torch.inference_mode()
def read(engine: TorchEngine, text: str) -> tuple[float, Tensor]:
    """How surprised the model is by a text, nats a token, and what it would have said."""
    ids = engine.tokenizer.encode(text)
    count = len(ids)
    positions = torch.arange(count)
    rows = Rows(torch.tensor(ids), positions, positions, [], blocks(0, 0, 0, count, count))
    logits = engine._model.logits(engine._model.hidden(rows, engine._cache, positions)).float()
    told_next = torch.tensor(ids[1:])[:, None]
    surprise = -torch.log_softmax(logits, 1)[:-1].gather(1, told_next).mean()
    return float(surprise), logits.argmax(1)


@pytest.mark.model
@pytest.mark.parametrize("pack", [pytest.param(True, marks=vnni), False])
def test_the_real_model_knows_as_much(int8_bundle: Bundle, pack: bool) -> None:
    limits = Limits(1, 512)
    exact = TorchEngine(open_bundle(None, None, None, "float32"), limits, "cpu", 1)
    small = TorchEngine(int8_bundle, limits, "cpu", 1, pack=pack)
    (nats, said), (small_nats, small_said) = read(exact, STORY), read(small, STORY)
    assert small_nats < nats + 0.05, f"{small_nats:.3f} nats a token, and {nats:.3f} in float32"
    same = (said == small_said).float().mean()
    assert same > 0.8, f"{same:.2f} of the likeliest tokens are the same"


@pytest.mark.model
def test_the_real_model_answers_mostly_the_same(int8_bundle: Bundle, real_bundle: Bundle) -> None:
    """Told what bfloat16 has answered so far, it goes on in the same way at most places."""
    plain = TorchEngine(real_bundle, Limits(1, 512), "cpu", 1)
    small = TorchEngine(int8_bundle, Limits(1, 512), "cpu", 1)
    same = total = 0
    for text in ("What is the capital of Germany?", "Why is the sky blue?", "Who wrote Hamlet?"):
        prompt = plain.tokenizer.encode_chat([Message("user", text)])
        answer = alone(plain, prompt, 32)
        for place in range(0, len(answer), 2):
            same += alone(small, prompt + tuple(answer[:place]), 1)[0] == answer[place]
            total += 1
    assert same / total > 0.75, f"{same} of {total}"


def test_a_core_that_is_told_to_runs_it(tiny_source: Path, tmp_path: Path) -> None:
    """In a process of its own, which makes both copies."""
    setup = msgspec.structs.replace(setup_of(tiny_source, tmp_path), dtype="int8")
    engine = ProcessEngine(setup)
    try:
        assert engine.description.dtype == "int8"
        prompt = engine.tokenizer.encode_chat([Message("user", "the other inner thing")])
        here = TorchEngine(open_quantised(tiny_source, None, tmp_path), setup.limits, "cpu", 1)
        assert alone(engine, prompt, 8) == alone(here, prompt, 8)
    finally:
        engine.close()
    assert sorted(
        folder.name.split("-", 1)[1] for folder in tmp_path.iterdir() if folder.is_dir()
    ) == [
        "bfloat16-v1",
        "int8-v1",
    ]

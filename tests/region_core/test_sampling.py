"""The choice of the next token, against a naive account in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from region_core.engine.base import Sampling
from region_core.engine.draw import seed_of, uniform
from region_core.engine.sampling import _wide_nucleus, choose, draw


def naive_distribution(logits: list[float], temperature: float, top_p: float) -> list[float]:
    """Probabilities as the definition says: softmax, then the smallest likeliest set."""
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    likely = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(likely)), key=lambda token: -likely[token])
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += likely[token]
        if total >= top_p:
            break
    return [likely[t] / total if t in kept else 0.0 for t in range(len(likely))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.9])
@pytest.mark.parametrize("top_p", [0.2, 0.71, 1.0])
def test_frequencies_follow_the_distribution(temperature: float, top_p: float) -> None:
    """Chi-squared, 4,000 draws over seeds: the same tokens, in the same shares."""
    logits = [2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.7, 0.2]
    expected = naive_distribution(logits, temperature, top_p)
    likely = torch.softmax(torch.tensor(logits) / temperature, 0)
    count = 4000
    seen = [0] * len(logits)
    for seed in range(count):
        seen[draw(likely, top_p, uniform(seed, 3))] += 1
    chi = 0.0
    for found, share in zip(seen, expected, strict=True):
        if share == 0.0:
            assert found == 0
        else:
            chi += (found - count * share) ** 2 / (count * share)
    assert chi < 24.3  # 7 degrees of freedom, 0.1%; the draws are fixed, so this cannot flicker


@given(
    logits=st.lists(st.floats(-20, 20), min_size=1, max_size=12),
    temperature=st.floats(0.05, 2),
    top_p=st.floats(0.01, 1),
    number=st.floats(0, 1, exclude_max=True),
)
def test_only_tokens_of_the_nucleus(
    logits: list[float], temperature: float, top_p: float, number: float
) -> None:
    likely = torch.softmax(torch.tensor(logits, dtype=torch.float32) / temperature, 0)
    token = draw(likely, top_p, number)
    heavier = float(likely[likely > likely[token]].double().sum())
    assert heavier < top_p + 1e-5  # what is likelier does not make up the nucleus alone
    assert float(likely[token]) > 0 or number == 0.0


def test_a_nucleus_larger_than_the_first_look() -> None:
    likely = torch.full((5000,), 1 / 5000)
    drawn = {draw(likely, 0.9, number / 997) for number in range(997)}
    assert len(drawn) > 900 and max(drawn) > 4000


@given(seed=st.integers(0, 500), top_p=st.floats(0.5, 0.999), spread=st.floats(0.0, 1.5))
def test_a_large_nucleus_is_the_naive_one(seed: int, top_p: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(2000, generator=generator).mul(spread).mul(8).round().div(8)  # many ties
    likely = torch.softmax(rough, 0)
    values = likely.tolist()
    order = sorted(range(2000), key=lambda token: (-values[token], token))
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += values[token]
        if total >= top_p:
            break
    found = _wide_nucleus(likely, top_p).tolist()
    assert found == sorted(found)
    # Sums of 2,000 terms in another order may disagree about the very last token.
    assert len(set(found) ^ set(kept)) <= 1


def test_numbers_are_uniform_and_repeat() -> None:
    numbers = [uniform(seed, index) for seed in range(40) for index in range(100)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    for tenth in range(10):
        share = sum(tenth / 10 <= number < (tenth + 1) / 10 for number in numbers)
        assert 320 < share < 480
    assert uniform(-1, 5) == uniform(2**64 - 1, 5) != uniform(-1, 6)


def test_numbers_never_change() -> None:
    """An answer may be continued by a core of another version."""
    assert uniform(7, 0) == 0.6497043364684557
    assert uniform(-1, 41) == 0.21242505437419046
    assert seed_of("req-1") == 830714397525821188


def rows(count: int, vocabulary: int = 500, width: int = 64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(count, width, generator=generator).bfloat16()
    head = torch.randn(vocabulary, width, generator=generator).mul(0.4).bfloat16()
    return torch.nn.functional.linear(hidden, head), hidden, head


def test_greedy_sees_through_the_ties_of_bfloat16() -> None:
    logits, hidden, head = rows(400, vocabulary=3000)
    exact = hidden.double() @ head.double().T
    chosen = choose(logits, hidden, head, [Sampling(0.0)] * 400, [0] * 400)
    assert chosen == exact.argmax(1).tolist()
    tied = logits.float().argmax(1).tolist()
    assert chosen != tied  # bfloat16 alone gets some of these 400 wrong


def test_each_row_by_its_own_rules_whatever_the_others() -> None:
    logits, hidden, head = rows(6)
    samplings = [
        Sampling(0.0),
        Sampling(1.0, 1.0, 1),
        Sampling(0.7, 0.5, 2),
        Sampling(0.0),
        Sampling(2.0, 0.9, -(2**63)),
        Sampling(1e-9, 1.0, 4),  # as good as 0
    ]
    indices = [0, 3, 1, 5, 9, 2]
    together = choose(logits, hidden, head, samplings, indices)
    for row in range(6):
        part = slice(row, row + 1)
        alone = choose(logits[part], hidden[part], head, samplings[part], indices[part])
        assert alone == [together[row]]
    assert together[5] == choose(logits[5:], hidden[5:], head, [Sampling(0.0)], [0])[0]


def test_another_index_or_seed_draws_anew() -> None:
    logits, hidden, head = rows(1)
    drawn = {
        choose(logits, hidden, head, [Sampling(2.0, 1.0, seed)], [index])[0]
        for seed in range(5)
        for index in range(5)
    }
    assert len(drawn) > 5

"""What a core offers follows the configuration, within what the core can do."""

from __future__ import annotations

from region_core.prepare import Offer
from region_core.process import narrowed
from topology.resources import ModelSpec

OWN = Offer("small", context_tokens=2048, max_output_tokens=1024, default_output_tokens=512)


def test_the_default_is_the_model_s() -> None:
    spec = ModelSpec(regions=("dubai",), context_tokens=2048, default_output_tokens=64)
    assert narrowed(OWN, spec).default_output_tokens == 64


def test_a_narrower_context_narrows_everything() -> None:
    spec = ModelSpec(regions=("dubai",), context_tokens=256)
    offer = narrowed(OWN, spec)
    assert (offer.context_tokens, offer.max_output_tokens) == (256, 256)


def test_a_core_never_offers_more_than_it_holds() -> None:
    spec = ModelSpec(regions=("dubai",), context_tokens=100_000)
    offer = narrowed(OWN, spec)
    assert (offer.context_tokens, offer.max_output_tokens) == (2048, 1024)

"""How large each channel becomes that a matrix of the model reads, on a text: what weights of eight
bits are prepared with (region_core/weights/smoothing.py)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from region_core.engine.attention_plan import blocks
from region_core.engine.byte_level import ByteLevelTokenizer
from region_core.engine.kv_cache import KeyValueCache
from region_core.engine.llama import Llama, Rows
from region_core.weights.bundle import Bundle, open_bundle
from region_core.weights.smoothing import Largest
from runtime import logs
from topology.wire.chat import Message

log = logs.get("engine")

_TOKENS = 512
# Of several kinds, since channels differ in what wakes them.
_TEXTS = (
    "The harbour of the old town lies between two hills. In the morning the boats come in with "
    "what they have caught, and by nine o'clock the market is full of people who buy fish, bread "
    "and fruit. In the year 1847 a fire destroyed 212 houses; the church was rebuilt in 1851.",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('none')"
    "\n    return sum(values) / len(values)\n\nprint(mean([1.5, 2.5, 3.75]))  # 2.583",
    "Question: if a train leaves at 10:40 and needs 2 hours and 35 minutes, when does it arrive? "
    "Answer: 10:40 plus 2 hours is 12:40, and 35 minutes later it is 13:15.",
    '{"name": "Ada Lovelace", "born": 1815, "fields": ["mathematics", "computing"], "url": '
    '"https://example.org/ada?lang=en&x=1"}',
    "Der Wind weht von Westen. Le vent souffle de l'ouest. El viento sopla del oeste. "
    "风从西方吹来。",
)


def open_quantised(source: Path | None, sha256: str | None, cache: Path | None) -> Bundle:
    """The bundle of eight bits for a source of weights, made now if it never was; that needs the
    one in bfloat16, which is then made too. Raises `WeightsError`."""
    return open_bundle(
        source,
        sha256,
        cache,
        "int8",
        lambda: largest_inputs(open_bundle(source, sha256, cache, "bfloat16")),
    )


@torch.inference_mode()
def largest_inputs(bundle: Bundle) -> Largest:
    """By name of the norm, the largest number of each channel after it."""
    log.info("calibrating weights of eight bits, once")
    card, device = bundle.card, torch.device("cpu")
    tokenizer = ByteLevelTokenizer(bundle.tokenizer, card)
    chat = tokenizer.encode_chat([Message("user", text) for text in _TEXTS])
    ids = chat[: min(_TOKENS, card.context_tokens)]
    count = len(ids)
    model = Llama(bundle.weights, card, count, device, pack=False)
    largest: dict[str, Tensor] = {}

    def saw(name: str, x: Tensor) -> None:
        largest[name] = x.float().abs().amax(0)

    model.watch(saw)
    cache = KeyValueCache(
        card.layers, 1, count, card.kv_heads, card.head_width, model.dtype, device
    )
    places = torch.arange(count)
    rows = Rows(torch.tensor(ids), places, places, [], blocks(0, 0, 0, count, count))
    model.hidden(rows, cache, places[-1:])
    return {name: channels.numpy() for name, channels in largest.items()}

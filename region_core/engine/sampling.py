"""From logits to tokens, each row by its own rules.

The rules: divide by the temperature, keep the smallest set of likeliest tokens whose
probabilities sum to `top_p` or more (Holtzman et al. 2020), and take the token at which the
cumulative probability, in the order of the vocabulary, passes the row's random number. The
order of the vocabulary, not of likelihood: two tokens that are almost equally likely must not
change places because of a rounding error in another region.

Logits in bfloat16 have steps of 1/16 and more, so ties are common and probabilities off by
3%. The logits that matter are therefore computed again, from the same bfloat16 inputs, with
float32 sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from region_core.engine.base import Sampling
from region_core.engine.draw import uniform
from region_core.engine.products import Matrix
from region_core.engine.quantised import Quantised

COLDEST = 1e-4  # a temperature below is 0: float32 could not hold the quotient
_EXACT_GREEDY = 16  # likeliest tokens whose logits are computed again
_EXACT_SAMPLED = 64
_FIRST_NUCLEUS = 256  # most nuclei are smaller


def choose(
    logits: Tensor,
    hidden: Tensor,
    head: Matrix,
    samplings: Sequence[Sampling],
    indices: Sequence[int],
) -> list[int]:
    """The next token of each row.

    `logits` is `[rows, vocabulary]` as the matrix product gave it, `hidden` `[rows, width]` and
    `head` `[vocabulary, width]` its factors; `indices` are the places in the answers.
    """
    warm = [row for row, s in enumerate(samplings) if s.temperature >= COLDEST]
    ids, exact = _exact(logits, hidden, head, _EXACT_SAMPLED if warm else _EXACT_GREEDY)
    best: list[int] = ids.gather(1, exact.argmax(1, keepdim=True))[:, 0].tolist()
    if not warm:
        return best
    rows = torch.tensor(warm, device=logits.device)
    full = logits[rows].float().scatter_(1, ids[rows], exact[rows])
    heat = torch.tensor([samplings[row].temperature for row in warm], device=logits.device)
    likely = torch.softmax(full / heat[:, None], 1)
    for place, row in enumerate(warm):
        sampling = samplings[row]
        best[row] = draw(likely[place], sampling.top_p, uniform(sampling.seed, indices[row]))
    return best


def draw(likely: Tensor, top_p: float, number: float) -> int:
    """The token of a distribution `[vocabulary]` that `number`, in [0, 1), stands for."""
    ids = _nucleus(likely, top_p) if top_p < 1.0 else None
    kept = likely if ids is None else likely[ids]
    summed = kept.double().cumsum(0)
    place = int(torch.searchsorted(summed, summed[-1] * number, right=True))
    place = min(place, len(summed) - 1)
    return place if ids is None else int(ids[place])


def _nucleus(likely: Tensor, top_p: float) -> Tensor:
    """The ids of the smallest likeliest set with probability `top_p` or more, ascending."""
    top, ids = likely.topk(min(_FIRST_NUCLEUS, len(likely)))
    before = top.double().cumsum(0) - top
    if len(top) == len(likely) or float(before[-1] + top[-1]) >= top_p:
        keep = max(1, int((before < top_p).sum()))
        return ids[:keep].sort().values
    return _wide_nucleus(likely, top_p)


def _wide_nucleus(likely: Tensor, top_p: float) -> Tensor:
    """The same, when it is large: by the probability of its least likely token.

    Only the values are sorted, which numpy does in 0.1 ms where sorting tokens takes torch 3 ms.
    Of tokens as likely as the last one, those with the lowest ids are in.
    """
    if likely.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(likely.numpy())).flip(0)
    else:
        ordered = likely.sort(descending=True).values
    before = ordered.double().cumsum(0) - ordered
    keep = max(1, int((before < top_p).sum()))
    last = ordered[keep - 1]
    above = likely > last
    ties = (likely == last).nonzero()[: keep - int(above.sum()), 0]
    return torch.cat((above.nonzero()[:, 0], ties)).sort().values


def _exact(logits: Tensor, hidden: Tensor, head: Matrix, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of each row and their logits with float32 sums, `[rows, count]`."""
    top, ids = logits.topk(min(count, logits.shape[1]), dim=1)
    if isinstance(head, Quantised):  # its logits come of inputs that were rounded
        return ids, (head.rows(ids) * hidden[:, None].float()).sum(2)
    if logits.dtype == torch.float32:
        return ids, top
    return ids, (head[ids].float() * hidden[:, None].float()).sum(2)

"""What is given where no region has room: an edge model's answer, or one past its end."""

from __future__ import annotations

from msgspec import Struct

from edge_node.admission.entry import Entry
from edge_node.admission.ladder import QUALITIES, Quality
from edge_node.cache.key import AnswerKey
from edge_node.front.call import QUALITY, Call
from edge_node.front.replies import EVENTS, JSON, Answer, Headers, encode
from edge_node.front.reuse import Reuse
from edge_node.models.base import EdgeModels
from runtime.clock import Clock
from topology.cursor import Tier
from topology.wire.chat import ChatRequest, Usage

EDGE_MODEL, STALE = QUALITIES.index("edge-model"), QUALITIES.index("stale")


class Order(Struct, frozen=True):
    """What a client asked for. `key`: None where it wants nothing that is kept. `deadline` is on
    the clock of flights."""

    request: ChatRequest
    key: AnswerKey | None
    tier: Tier
    deadline: float


class Lesser:
    """Of one edge worker."""

    def __init__(
        self, edge: str, entry: Entry, reuse: Reuse, models: EdgeModels, clock: Clock
    ) -> None:
        self._edge = edge
        self._entry = entry
        self._reuse = reuse
        self._models = models
        self._clock = clock

    def first(self, tier: Tier) -> bool:
        """Whether requests of this tier are given this before a region is asked."""
        return self._entry.ladders[tier].place >= EDGE_MODEL

    async def reply(self, call: Call, order: Order, now: float, *, standing: bool = False) -> bool:
        """Give the client what there is; False: there is nothing. `standing`: only what its tier's
        standing says."""
        request, key, tier = order.request, order.key, order.tier
        ladder = self._entry.ladders[tier]
        lowest = ladder.place if standing else len(QUALITIES)
        if "edge-model" in ladder.rungs and lowest >= EDGE_MODEL:
            answer = await self._by_edge_model(call, request, order.deadline - now)
            if answer is not None:
                kind = EVENTS if request.stream else JSON
                headers = self._headers(kind, "edge-model")
                self._give(call, tier, "edge-model", headers, encode(answer, request))
                return True
        if key is not None and "stale" in ladder.rungs and lowest >= STALE:
            found = self._reuse.stale(key, request, now)
            if found is not None:
                headers = [h for h in found[0] if h[0] != QUALITY]
                self._give(call, tier, "stale", [*headers, (QUALITY, "stale")], found[1])
                return True
        return False

    def _give(
        self, call: Call, tier: Tier, quality: Quality, headers: Headers, body: bytes
    ) -> None:
        self._entry.gave(tier, quality)
        call.reply(200, headers, body)

    async def _by_edge_model(
        self, call: Call, request: ChatRequest, left_s: float
    ) -> Answer | None:
        model = self._models.find(request.model)
        if model is None or left_s <= 0:
            return None
        found = await model.answer(request, left_s)
        if found is None:
            return None
        usage = Usage.of(found.prompt_tokens, found.completion_tokens)
        created_s = int(self._clock.wall())
        return Answer(call.own_id, created_s, model.name, found.text, found.finish_reason, usage)

    def _headers(self, kind: Headers, quality: Quality) -> Headers:
        return [
            *kind,
            ("x-tradewind-served-by", "edge-model"),
            ("x-tradewind-edge", self._edge),
            (QUALITY, quality),
        ]

"""A request to a model that answers in place of the one that was asked for."""

from __future__ import annotations

import msgspec

from edge_node.forward.attempt import Ask
from edge_node.forward.choice import Choice
from topology.routing import Decision


def stand_in(ask: Ask, choice: Choice) -> tuple[Ask, Decision] | None:
    """The request to `ModelSpec.substitute`, and where it may go; None where there is none, or no
    region may answer it. The tenant need not name the model itself: who may use the one may be
    answered by the other."""
    models = choice.snapshot.models
    asked = models.get(ask.model)
    if ask.stand_in or asked is None or asked.substitute is None:
        return None
    name = asked.substitute
    spec = models.get(name)
    if spec is None:
        return None
    decision = choice.decide_stand_in(ask.tenant, name)
    if not decision.candidates:
        return None
    return msgspec.structs.replace(
        ask,
        model=name,
        body=renamed(ask.body, name),
        most_tokens=min(ask.most_tokens, spec.context_tokens),
        stand_in=True,
    ), decision


def renamed(body: bytes, model: str) -> bytes:
    """The same request to another model. `body` was read as a request before."""
    fields = msgspec.json.decode(body)
    fields["model"] = model
    return msgspec.json.encode(fields)

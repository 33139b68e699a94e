"""From a request to what the engine runs: checks, tokens, limits. Pure.

Everything that can be wrong with a request is found here, before it takes a place in the queue.
"""

from __future__ import annotations

from msgspec import Struct

from region_core.engine.base import FinishReason, Sampling, Tokenizer
from region_core.engine.detokenise import Detokeniser
from region_core.engine.draw import seed_of
from region_core.errors import Refused
from region_core.job import Job
from topology.wire.chat import ChatRequest


class Offer(Struct, frozen=True):
    """What this core serves, and how much of it."""

    model: str
    context_tokens: int  # prompt and answer together
    max_output_tokens: int
    default_output_tokens: int


class Prepared(Struct):
    """A request in tokens. `detokeniser` has been fed the tokens that the client has.

    `finished` is set when those tokens are the whole answer already.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    detokeniser: Detokeniser
    finished: FinishReason | None


def prepare(job: Job, tokenizer: Tokenizer, offer: Offer) -> Prepared:
    """The request in tokens, or `Refused`."""
    request = job.request
    check_model(request.model, offer)
    check_asked(request, offer)
    _check_size(request, tokenizer, offer)
    prompt = tokenizer.encode_chat(request.messages)
    max_tokens = output_limit(request, len(prompt), offer)
    detokeniser = Detokeniser(tokenizer.token_bytes, request.stop)
    finished = replay(job.resume, max_tokens, tokenizer, detokeniser)
    return Prepared(prompt, job.resume, max_tokens, sampling(job), detokeniser, finished)


def check_model(model: str, offer: Offer) -> None:
    if model != offer.model:
        raise Refused(
            "unknown_model",
            f"The model '{model}' does not exist here; there is '{offer.model}'.",
            status=404,
            param="model",
            reason="model_not_found",
        )


def check_asked(request: ChatRequest, offer: Offer) -> None:
    if request.max_tokens is not None and request.max_tokens > offer.max_output_tokens:
        raise Refused(
            "invalid",
            f"'max_tokens' is {request.max_tokens}, and at most {offer.max_output_tokens} "
            "are served.",
            status=400,
            param="max_tokens",
            reason="invalid_value",
        )


def output_limit(request: ChatRequest, prompt_tokens: int, offer: Offer) -> int:
    """How many tokens the answer may have, or `Refused` when they do not fit the context.

    Without `max_tokens` in the request it is the default, or what is left of the context.
    """
    room = offer.context_tokens - prompt_tokens
    asked = request.max_tokens
    if room < 1 or (asked is not None and asked > room):
        wanted = f" and {asked} for the answer" if asked is not None else ""
        raise _too_long(f"{prompt_tokens} tokens in the messages{wanted}", offer)
    if asked is not None:
        return asked
    return min(room, offer.default_output_tokens, offer.max_output_tokens)


def sampling(job: Job) -> Sampling:
    request = job.request
    seed = request.seed
    if seed is None:
        seed = seed_of(job.request_id) if request.temperature > 0 else 0
    return Sampling(request.temperature, request.top_p, seed)


def _check_size(request: ChatRequest, tokenizer: Tokenizer, offer: Offer) -> None:
    """Refuse what cannot fit before spending time on it: tokenising 1 MB takes 0.3 s."""
    size = sum(len(message.content) for message in request.messages)
    least = size // tokenizer.longest_token_bytes
    if least > offer.context_tokens:
        raise _too_long(f"at least {least} tokens in the messages", offer)


def _too_long(found: str, offer: Offer) -> Refused:
    return Refused(
        "invalid",
        f"The model's context holds {offer.context_tokens} tokens, and there are {found}.",
        status=400,
        param="messages",
        reason="context_length_exceeded",
    )


def replay(
    answer: tuple[int, ...], max_tokens: int, tokenizer: Tokenizer, detokeniser: Detokeniser
) -> FinishReason | None:
    """Feed what the client has; say whether it is the whole answer."""
    for index, token in enumerate(answer):
        ended = token in tokenizer.end_ids or detokeniser.stopped or index >= max_tokens
        if ended or not 0 <= token < tokenizer.vocabulary:
            raise Refused(
                "invalid",
                f"resume_tokens[{index}] cannot be a token of this answer.",
                status=400,
                param="resume_tokens",
            )
        detokeniser.feed(token)
    if detokeniser.stopped:
        return "stop"
    return "length" if answer and len(answer) == max_tokens else None

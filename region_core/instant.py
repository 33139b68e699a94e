"""Answer in one go, without a queue or a thread: the `sim` engine with no service time.

For benchmarks of everything around the engine: what is spent here is spent by the ingress too.
"""

from __future__ import annotations

from region_core.engine.base import FinishReason
from region_core.engine.detokenise import Detokeniser
from region_core.engine.sim import SimEngine, conversation, pieces
from region_core.job import Job, Sink
from region_core.prepare import Offer, check_asked, check_model, output_limit, replay, sampling
from region_core.report import Counters


def answer_at_once(
    engine: SimEngine, offer: Offer, job: Job, sink: Sink, counters: Counters
) -> None:
    """Tell the sink the whole answer. Raises `Refused`."""
    request = job.request
    check_model(request.model, offer)
    check_asked(request, offer)
    prompt = conversation(request.messages)
    prompt_tokens = pieces(prompt)
    limit = output_limit(request, prompt_tokens, offer)
    ids, text = engine.whole(prompt, sampling(job))
    finish: FinishReason = "stop" if len(ids) < limit else "length"
    begin = len(job.resume)
    if begin or request.stop or len(ids) > limit:
        ids, text, finish = _cut(engine, job, ids, limit)
    counters.accepted += 1
    counters.prompt_tokens += prompt_tokens
    counters.completion_tokens += len(ids) - begin
    counters.finished[finish] += 1
    sink.accepted(0.0, 0.0)
    sink.tokens(begin, ids[begin:] if begin else ids, text)
    sink.end(finish, prompt_tokens, len(ids))


def _cut(
    engine: SimEngine, job: Job, ids: tuple[int, ...], limit: int
) -> tuple[tuple[int, ...], str, FinishReason]:
    """The answer behind what the client has, up to a stop string or the limit."""
    detokeniser = Detokeniser(engine.tokenizer.token_bytes, job.request.stop)
    finished = replay(job.resume, limit, engine.tokenizer, detokeniser)
    if finished is not None:
        return job.resume, detokeniser.finish(), finished
    text, taken = "", len(job.resume)
    while taken < min(len(ids), limit) and not detokeniser.stopped:
        text += detokeniser.feed(ids[taken])
        taken += 1
    if detokeniser.stopped:
        return job.resume + ids[len(job.resume) : taken], text, "stop"
    finish: FinishReason = "stop" if taken >= len(ids) and len(ids) < limit else "length"
    return job.resume + ids[len(job.resume) : taken], text + detokeniser.finish(), finish

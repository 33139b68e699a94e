"""When a request would get its first token, from the queue, the batch and how steps went lately.

A newcomer waits until as many slots were left as there are requests before it. Slots are left by
those that run, after the tokens that they are expected to have yet, and then, round after round,
by those that wait. Each round of decoding takes a step with all slots in use, and each token of
input before its own takes its time on top. More urgent requests that are still to come are allowed
for by the share of places that they took lately, and less urgent ones by their floor.

An estimate is the middle of what may happen. What is decided by it goes by `late_s`: the same with
a margin learnt from how estimates turned out, so that nine first tokens in ten come no later.
Nothing is promised as long as nothing is known: no estimate is above zero before `KNOWN` steps.
"""

from __future__ import annotations

from math import ceil

from msgspec import Struct

from region_core.scheduling.answer_lengths import AnswerLengths
from region_core.scheduling.plan import Step
from region_core.scheduling.releases import Releases
from region_core.scheduling.step_model import StepModel
from topology.fair_queue import FLOOR, URGENCIES, Ahead

ANSWERS = 0.9  # share of answers that are no longer than what is allowed for
IN_TIME = 0.9  # share of first tokens that come no later than `late_s`
MARGIN = 1.2  # to begin with
_MARGINS = (1.1, 2.0)
_LEARNS = 0.02  # how far a first token that came late moves the margin
_WAITED_S = 0.25  # estimates below this teach nothing about the margin
_STEP_WEIGHT = 1 / 64  # of the last step, in the mean input of steps
_PLACES = 0.98  # what a place given counts for after the next one
_MOST_OVERTAKEN = 1 - 1 / FLOOR
_ERROR_WEIGHT = 0.05


class Ask(Struct, frozen=True):
    """A request, as far as its forecast goes."""

    urgency: int
    tenant: str
    input_tokens: int
    limit_tokens: int
    resumed: bool = False  # its client has the beginning of the answer already
    weight: float = 1.0  # of its tenant


class Scene(Struct, frozen=True):
    """The batch at a moment."""

    slots: int
    free: int  # of these, that nobody uses
    running: int
    releases: Releases  # of the slots in use
    input_tokens: int  # of sequences that run, not taken in yet
    chunk_tokens: int  # of one sequence in one step
    input_budget: int  # of all sequences in one step


class Estimate(Struct, frozen=True):
    """Seconds from now. `late_s`: nine first tokens in ten come no later than that."""

    wait_s: float  # until it has a slot
    first_token_s: float
    late_s: float
    answer_s: float  # from its first token to its last, if it is as long as nine in ten are lately
    alone_s: float  # until its first token, had it the engine to itself


class Accuracy(Struct):
    """How estimates turned out, of requests that had to wait."""

    first_tokens: int = 0
    late: int = 0  # came after `late_s`
    error_s: float = 0.0  # mean difference from `first_token_s`, lately
    waited_s: float = 0.0  # mean time to the first token, lately


class Forecast:
    """What has been learnt. Pure: reads no clock; memory is bounded."""

    def __init__(self) -> None:
        self.steps = StepModel()
        self.lengths = AnswerLengths()
        self.accuracy = Accuracy()
        self.margin = MARGIN
        self._input_per_step = 0.0  # tokens, lately
        self._places = [0.0] * URGENCIES  # given lately, by urgency

    def stepped(self, step: Step, took_s: float) -> None:
        tokens = step.tokens - len(step.decodes)
        self.steps.stepped(len(step.decodes), tokens, took_s)
        self._input_per_step += _STEP_WEIGHT * (tokens - self._input_per_step)

    def expected_s(self, step: Step) -> float:
        """How long it should take; 0 as long as nothing is known."""
        decodes = len(step.decodes)
        return self.steps.seconds(decodes, step.tokens - decodes)

    def decode_s(self, sequences: int) -> float:
        """From one token of a sequence to its next, with the input of others in between."""
        return self.steps.seconds(sequences, self._input_per_step)

    def placed(self, urgency: int) -> None:
        """A request got a slot."""
        for level in range(URGENCIES):
            self._places[level] *= _PLACES
        self._places[urgency] += 1.0

    def came(self, promised_s: float, took_s: float) -> None:
        """A first token came, or its request ended without one, `took_s` after it was asked."""
        if promised_s < _WAITED_S:
            return
        late = took_s > promised_s * self.margin
        accuracy = self.accuracy
        weight = _ERROR_WEIGHT if accuracy.first_tokens else 1.0
        accuracy.error_s += weight * (abs(took_s - promised_s) - accuracy.error_s)
        accuracy.waited_s += weight * (took_s - accuracy.waited_s)
        accuracy.first_tokens += 1
        accuracy.late += late
        least, most = _MARGINS
        step = _LEARNS * (IN_TIME if late else IN_TIME - 1)
        self.margin = min(most, max(least, self.margin + step))

    def estimate(self, ask: Ask, ahead: Ahead, scene: Scene, hangs_s: float = 0.0) -> Estimate:
        """What a newcomer has to expect. `hangs_s`: so long the step under way has taken beyond
        what it should; it is taken to need as much again."""
        steps = self.steps
        answer = self.lengths.within(ANSWERS, ask.limit_tokens)
        chunks = ceil(ask.input_tokens / scene.chunk_tokens)
        alone_s = steps.seconds(1) * chunks + steps.token_s * ask.input_tokens
        if not steps.known:
            return Estimate(0.0, 0.0, 0.0, 0.0, 0.0)
        waits = ahead.requests - scene.free
        if waits < 0:
            return self._at_once(ask, ahead, scene, answer, alone_s, hangs_s)
        places = self._places_until(ask.urgency, ahead, waits)
        rounds = scene.releases.steps_until(places)
        step_s = steps.seconds(scene.slots)
        each = ahead.input_tokens / ahead.requests if ahead.requests else 0.0
        before = scene.input_tokens + each * (places - 1)
        wait_s = hangs_s + rounds * step_s + before * steps.token_s
        first_s = wait_s + chunks * step_s + steps.token_s * ask.input_tokens
        whole_s = answer * self.decode_s(scene.slots)
        return Estimate(wait_s, first_s, first_s * self.margin, whole_s, alone_s)

    def _at_once(
        self,
        ask: Ask,
        ahead: Ahead,
        scene: Scene,
        answer: float,
        alone_s: float,
        hangs_s: float,
    ) -> Estimate:
        """There is a slot for it: its input waits for that of those before it, and for the step
        under way."""
        steps = self.steps
        before = scene.input_tokens + ahead.input_tokens
        tokens = before + ask.input_tokens
        in_use = scene.running + ahead.requests
        step_s = steps.seconds(in_use)
        count = max(ceil(ask.input_tokens / scene.chunk_tokens), ceil(tokens / scene.input_budget))
        under_way = 0.5 if scene.running else 0.0
        first_s = hangs_s + (count + under_way) * step_s + tokens * steps.token_s
        whole_s = answer * self.decode_s(in_use + 1)
        return Estimate(0.0, first_s, first_s * self.margin, whole_s, alone_s)

    def _places_until(self, urgency: int, ahead: Ahead, waits: int) -> float:
        """How many places are given until it has one: by its turn, or by its level's floor."""
        given = sum(self._places)
        above = sum(self._places[:urgency]) / given if given else 0.0
        floors = 1 + ahead.waiting_below / FLOOR
        turn = waits * floors / (1 - min(above, _MOST_OVERTAKEN)) + 1
        return min(turn, (ahead.own + 1) * (FLOOR + 1.0))

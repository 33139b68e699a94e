"""Is a path alive, and how good is it? When to ask, what to conclude. Sans-I/O: `now` is an
argument, in seconds.

A path is judged by answers, not by what is heard on it: an ECHO of a probe, or QUIC's
acknowledgement of anything sent. So a cut of either direction is found, and so is a region that
talks and does not listen. It is `silent` when the oldest question without an answer is older than

    round trip + max(patience, 4 * its variation)        (smoothed, RFC 9002, section 5.3)

and three questions at least have waited for longer than a round trip; more than three where
packets are being lost, so that loss is not taken for silence. Before that it is `suspect`, and is
asked faster. A silent path is asked on for a while: with the first answer it is up again.

Time during which this process itself did not run counts for nothing: whoever was stopped for a
while has not waited, and has not measured. The caller must

1. read its socket before it calls `judge`, so that answers that are there already are seen, and
   say so where more is left in it;
2. call `judge` when the last verdict's `again_s` has come, and not much later;
3. send the verdict's probe, if it has one, at once.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal, TypeAlias

from msgspec import Struct

from topology.latency import WindowedMin
from topology.overlay.loss import LossWindow
from topology.overlay.probe import Echo

PathState: TypeAlias = Literal["up", "suspect", "silent", "stalled", "connecting", "waiting"]

_LATE_S = 0.01  # called later than it wanted to be: the process did not run
_STOPPED_S = 0.1  # or half a round trip: what was under way while it did not run measures nothing
_WARM_UP = 8  # probes of a new path that follow each other quickly, to know its variation
_WARM_UP_EVERY_S = 0.1
_WORD_EVERY_S = 0.25  # how old the region's word about itself may be while exchanges are open
_SUSPECT_EVERY_S = 0.025
_SUSPECT_AFTER_S = 0.05  # beyond the round trip and its variation
_OVERDUE_S = 0.025  # beyond the round trip: what has waited for longer is missed
_SILENT_EVERY_S = 0.1
_QUESTIONS_MIN, _QUESTIONS_MAX = 3, 10
_FALSE_ALARM = 1e-6  # the chance that so many questions in a row are lost without a cut
_LOSS_MIN, _LOSS_MAX = 0.005, 0.9  # what is reckoned with, whatever was measured
_FASTEST_S = 0.02
_PATIENCE_MAX_S = 2.0  # however much a path varies
_REMEMBERED = 128  # probes whose times are kept
_UNMEASURED_S = 0.333  # a round trip, before anything is known (RFC 9002, section 6.2.2)
_LOSS_SHOWN, _LOSS_SHOWN_OF = 0.03, 20
_DELAY_SHOWN_S, _DELAY_SHOWN_SHARE = 0.02, 0.3
_TOLD_S = 10.0  # for how long an estimate tells why its path was silent


class Rules(Struct, frozen=True):
    """How a path is watched; see `TunnelSettings`."""

    idle_every_s: float = 1.0
    busy_every_s: float = 0.05
    patience_s: float = 0.15
    jitters: float = 4.0
    keep_s: float = 3.0


class Seen(Struct, frozen=True):
    """What QUIC knows of a connection without being asked. All counts are since it began."""

    heard_s: float  # when the latest packet of the peer's came
    asked: int  # the number of the newest packet that is to be acknowledged; -1: none is waiting
    asked_s: float  # and when it was sent
    acked: int  # the largest number that was acknowledged; -1: none
    delivered: int  # packets that were acknowledged
    lost: int  # packets that QUIC took for lost
    received: int  # packets of the peer's
    expected: int  # the largest of their numbers
    rtt_s: float | None  # QUIC's latest sample


class Estimate(Struct, frozen=True):
    """What is known of a path. `rtt_ms` is the least of late: what the way itself takes, whatever
    queues in it; `smoothed_ms` is what it takes now. Losses are shares, None where nothing was
    counted. `age_s` is how long ago something was answered. `since_s` is when `state` became so,
    on the tunnel's clock; `why` says what is wrong, and is empty when nothing is."""

    rtt_ms: float | None
    jitter_ms: float | None
    loss_out: float | None
    loss_back: float | None
    age_s: float | None
    state: PathState
    since_s: float
    why: str
    smoothed_ms: float | None = None

    @classmethod
    def unknown(cls, state: PathState, since_s: float, why: str) -> Estimate:
        """Of a path without a connection."""
        return cls(None, None, None, None, None, state, since_s, why)


class Verdict(Struct, frozen=True):
    """What to do: send a PROBE of this number now (None: none), judge again, give up."""

    probe: int | None
    again_s: float
    over: bool = False


class _Question(Struct):
    """Something that was sent and is to be answered. `packet` is the number of its packet, -1
    while it is not known; `slept_s` is how long the process had not run until then, in all."""

    sent_s: float
    packet: int
    slept_s: float


class PathMonitor:
    """One connection's path. `state` and `why` are the last conclusion, `since_s` its time."""

    def __init__(self, now: float, rules: Rules, seen: Seen) -> None:
        self.state: PathState = "up"
        self.since_s = now
        self.why = ""
        self.probes = 0  # sent
        self.echoes = 0  # received
        self._rules = rules
        self._questions: deque[_Question] = deque()  # without an answer, oldest first
        self._settled_s = now  # when the newest question that was answered had been sent
        self._answered_s = now  # when an answer came
        self._heard_s = now
        self._asked_s = now - rules.idle_every_s  # the last probe
        self._due_s = now
        self._slept_s = 0.0
        self._suspected = self._stalled = False
        rtt_s = seen.rtt_s if seen.rtt_s is not None else _UNMEASURED_S
        self._rtt_s, self._varies_s = rtt_s, rtt_s / 2
        self._measured = False  # by a probe
        self._least, self._usual = WindowedMin(10.0), WindowedMin(60.0)
        self._sample(now, rtt_s)
        # When each of the last probes was sent, and how long the process had not run by then.
        self._times = [(0.0, 0.0)] * _REMEMBERED
        self._newest = -1  # the newest probe that was echoed
        self._got = self._sent = 0  # probes that had arrived and echoes that were sent, by then
        self._out, self._back = LossWindow(), LossWindow()
        self._needed = _QUESTIONS_MIN  # questions that must go unanswered
        self._counts_from_s = now
        self._resumed = False  # answers came after a silence, and no echo yet
        self._seen = seen
        self._looked_s = now  # at what QUIC knows
        self._slept_looked_s = 0.0  # `_slept_s` then

    # What happens

    def echoed(self, echo: Echo, now: float) -> bool:
        """An ECHO arrived. False: it answers nothing that was asked, and is ignored."""
        oldest = max(0, self.probes - _REMEMBERED)
        if not oldest <= echo.number < self.probes or echo.got > self.probes:
            return False
        self.echoes += 1
        self._wake(now)
        self._heard_s = now
        newer = echo.number > self._newest
        if echo.sent > self._sent:
            self._count(now, echo)
            self._stalled = echo.stalled
        else:
            self._back.add(now, 0, -1)  # it was overtaken, and taken for lost
        if newer:
            self._newest = echo.number
            self._settle(echo.number, now)
        return True

    def acknowledged(self, number: int, now: float) -> None:
        """A probe was acknowledged by a peer that knows no echoes."""
        if max(0, self.probes - _REMEMBERED) <= number < self.probes:
            self._wake(now)
            self._settle(number, now)

    def judge(self, now: float, seen: Seen, busy: bool, behind: bool = False) -> Verdict:
        """`busy`: exchanges are open. `behind`: more waits in the socket than was read, and the
        answers may be among it, so that the time since the last look counts for nothing."""
        self._wake(now)
        if behind:
            self._slept_s = max(self._slept_s, self._slept_looked_s + now - self._looked_s)
        self._look(now, seen)
        self._conclude(now, judging=True)
        if self.state == "silent" and now - self.since_s > self._rules.keep_s:
            self._due_s = now
            return Verdict(None, now, over=True)
        probe = self._ask(now) if self._ask_at(busy) <= now else None
        again = min(self._ask_at(busy), self._change_at(now))
        self._due_s = max(now + 0.001, again)
        return Verdict(probe, self._due_s)

    # What is known

    def estimate(self, now: float) -> Estimate:
        return Estimate(
            rtt_ms=self.rtt_s(now) * 1000,
            jitter_ms=self._varies_s * 1000,
            loss_out=self._out.share(now),
            loss_back=self._back.share(now),
            age_s=max(0.0, now - self._answered_s),
            state=self.state,
            since_s=self.since_s,
            why=self._ailment(now) if self.state == "up" else self.why,
            smoothed_ms=self._rtt_s * 1000,
        )

    def rtt_s(self, now: float) -> float:
        """The least of late: neither a busy process nor a queue makes a near region look far."""
        least = self._least.at(now)
        return self._rtt_s if least is None else least

    @property
    def patience_s(self) -> float:
        """How old the oldest question may become without its answer."""
        rules = self._rules
        beyond = max(rules.patience_s, rules.jitters * self._varies_s)
        if self._needed > _QUESTIONS_MIN:  # they must all be asked, too
            beyond = max(beyond, self._needed * self._busy_every_s + _OVERDUE_S)
        return self._rtt_s + min(beyond, _PATIENCE_MAX_S)

    # Measuring

    def _measure(self, now: float, sample_s: float) -> None:
        """RFC 9002, section 5.3, with no delay to take off: an ECHO is sent at once."""
        if self._measured:
            self._varies_s += (abs(self._rtt_s - sample_s) - self._varies_s) / 4
            self._rtt_s += (sample_s - self._rtt_s) / 8
        else:
            self._measured = True
            self._rtt_s, self._varies_s = sample_s, sample_s / 2
        self._sample(now, sample_s)

    def _sample(self, now: float, sample_s: float) -> None:
        self._least.add(now, sample_s)
        self._usual.add(now, sample_s)

    def _count(self, now: float, echo: Echo) -> None:
        """What was lost each way since the last echo. What a silence cost is told by the state,
        and is no share of loss."""
        asked = max(0, echo.number - self._newest)
        got, sent = echo.got - self._got, echo.sent - self._sent
        self._got, self._sent = echo.got, echo.sent
        if self.state == "silent" or self._resumed:
            self._resumed = False
            if asked > _QUESTIONS_MIN:
                arrived = "arrived" if got * 2 > asked else "did not arrive"
                self.why = f"answers again; what we sent meanwhile {arrived}"
        elif now >= self._counts_from_s:
            self._out.add(now, asked, asked - got)
            self._back.add(now, sent, sent - 1)

    def _look(self, now: float, seen: Seen) -> None:
        """Answers and losses that QUIC knows of."""
        before, self._seen = self._seen, seen
        since_s, self._looked_s = self._looked_s, now
        self._slept_looked_s = self._slept_s
        self._heard_s = max(self._heard_s, seen.heard_s)
        if seen.asked >= 0:
            self._mark(seen)
        if seen.acked > before.acked:
            answered = [q.sent_s for q in self._questions if 0 <= q.packet <= seen.acked]
            self._answer(now, answered[-1] if answered else self._settled_s)
            if seen.rtt_s is not None:
                self._sample(now, seen.rtt_s)
        if self.state != "silent" and since_s >= self._counts_from_s:
            lost, gone = seen.lost - before.lost, seen.expected - before.expected
            self._out.add(now, seen.delivered - before.delivered + lost, lost)
            self._back.add(now, gone, gone - (seen.received - before.received))
        self._needed = self._questions_needed(now)

    def _mark(self, seen: Seen) -> None:
        """Remember what was sent last as a question."""
        newest = self._questions[-1] if self._questions else None
        if newest is not None and newest.packet < 0 and seen.asked_s - newest.sent_s < 0.002:
            newest.packet = seen.asked  # it is the probe
        elif seen.asked_s > max(self._settled_s, newest.sent_s if newest is not None else 0.0):
            self._questions.append(_Question(seen.asked_s, seen.asked, self._slept_s))

    def _questions_needed(self, now: float) -> int:
        there, back = self._out.share(now) or 0.0, self._back.share(now) or 0.0
        lost = min(_LOSS_MAX, max(_LOSS_MIN, 1.0 - (1.0 - there) * (1.0 - back)))
        wanted = math.ceil(math.log(_FALSE_ALARM) / math.log(lost))
        return min(_QUESTIONS_MAX, max(_QUESTIONS_MIN, wanted))

    # Concluding

    def _wake(self, now: float) -> None:
        """The process runs. Whatever comes first tells how long it had not: an answer may be read
        before the path is judged, and must not find the others overdue."""
        if now - self._due_s > _LATE_S:
            self._slept_s += now - self._due_s
            self._due_s = now

    def _settle(self, number: int, now: float) -> None:
        """A probe was answered."""
        sent_s, slept_s = self._times[number % _REMEMBERED]
        if self._slept_s - slept_s < max(_STOPPED_S, self._rtt_s / 2):
            self._measure(now, now - sent_s)
        self._answer(now, sent_s)
        self._conclude(now)

    def _answer(self, now: float, sent_s: float) -> None:
        """What was sent at `sent_s` was answered; all before it is of no account any more."""
        questions = self._questions
        while questions and questions[0].sent_s <= sent_s:
            questions.popleft()
        self._settled_s = max(self._settled_s, sent_s)
        self._answered_s = now

    def _conclude(self, now: float, *, judging: bool = False) -> None:
        """Silent it becomes when it is judged alone: until then more may be read."""
        oldest_s = self._age_s(self._questions[0], now) if self._questions else 0.0
        self._suspected = oldest_s > self._suspect_s
        if judging and oldest_s > self.patience_s and self._overdue(now) >= self._needed:
            self._become("silent", now, self._silence(oldest_s))
        elif self.state == "silent" and self._suspected:
            pass  # not yet
        elif self._stalled:
            self._become("stalled", now, "the region answers probes and serves nothing")
        elif self._suspected:
            self._become("suspect", now, f"no answer for {oldest_s * 1000:.0f} ms")
        else:
            self._become("up", now, self.why if self.state == "silent" else "")

    def _become(self, state: PathState, now: float, why: str) -> None:
        if state == self.state:
            return
        if self.state == "silent":
            self._resumed = self._newest < self.probes - 1
            self._counts_from_s = now + self._rtt_s + _WARM_UP_EVERY_S
        self.state, self.since_s, self.why = state, now, why

    def _age_s(self, question: _Question, now: float) -> float:
        """How long a question has waited, while this process ran."""
        return now - question.sent_s - (self._slept_s - question.slept_s)

    @property
    def _suspect_s(self) -> float:
        return self._rtt_s + _SUSPECT_AFTER_S + self._varies_s

    def _overdue(self, now: float) -> int:
        """How many questions have waited for longer than a round trip."""
        limit = self._rtt_s + max(_OVERDUE_S, self._varies_s)
        return sum(self._age_s(question, now) >= limit for question in self._questions)

    def _silence(self, age_s: float) -> str:
        """Why a path is silent. What the peer sent before a cut is heard for a while after it."""
        if self._heard_s > self._questions[0].sent_s + self._rtt_s + _OVERDUE_S:
            return f"what we send does not arrive: no answer for {age_s * 1000:.0f} ms"
        return f"nothing comes back: no answer for {age_s * 1000:.0f} ms"

    def _ailment(self, now: float) -> str:
        """What is wrong with a path that works."""
        shares = (
            (self._out.share(now, _LOSS_SHOWN_OF), "we send"),
            (self._back.share(now, _LOSS_SHOWN_OF), "comes back"),
        )
        lost = [f"{s:.0%} of what {what} is lost" for s, what in shares if s and s >= _LOSS_SHOWN]
        usual_s = self._usual.at(now) or self._rtt_s
        more_s = self._rtt_s - usual_s
        slow = more_s > max(_DELAY_SHOWN_S, _DELAY_SHOWN_SHARE * usual_s)
        if lost:
            return f"{' and '.join(lost)}, {'and' if slow else 'without'} delay"
        if slow:
            return f"{more_s * 1000:.0f} ms longer than usual, without loss"
        return self.why if now - self.since_s < _TOLD_S else ""

    # Asking

    @property
    def _busy_every_s(self) -> float:
        """Often enough that as many questions as are needed fit into the patience."""
        rules = self._rules
        fitting = max(_FASTEST_S, rules.patience_s / self._needed)
        return min(rules.busy_every_s, fitting)

    def _every_s(self, busy: bool) -> float:
        rules = self._rules
        if self.state == "silent":
            return min(_SILENT_EVERY_S, rules.idle_every_s)
        if self._suspected:
            return min(_SUSPECT_EVERY_S, rules.busy_every_s)
        if busy:
            return self._busy_every_s
        return min(_WARM_UP_EVERY_S, rules.idle_every_s) if self._warming else rules.idle_every_s

    @property
    def _warming(self) -> bool:
        return self.probes < _WARM_UP

    def _ask_at(self, busy: bool) -> float:
        """When the next probe is to be sent."""
        every = self._every_s(busy)
        if busy and not self._suspected and self.state != "silent":
            # Data that is to be acknowledged asks as well as a probe would.
            newest = self._questions[-1].sent_s if self._questions else self._settled_s
            at = max(self._asked_s, newest) + every
            return min(at, self._asked_s + max(every, _WORD_EVERY_S))
        return self._asked_s + every

    def _ask(self, now: float) -> int:
        number = self.probes
        self.probes += 1
        self._times[number % _REMEMBERED] = now, self._slept_s
        due = self._asked_s + self._rules.idle_every_s
        self._asked_s = due if 0 <= now - due < _LATE_S else now  # so that a second stays one
        self._questions.append(_Question(now, -1, self._slept_s))
        return number

    def _change_at(self, now: float) -> float:
        """When the questions that wait now may change the conclusion."""
        if not self._questions:
            return math.inf
        oldest = self._questions[0]
        since = oldest.sent_s + self._slept_s - oldest.slept_s
        times = (since + self._suspect_s + 0.001, since + self.patience_s + 0.001)
        return min((at for at in times if at > now), default=math.inf)

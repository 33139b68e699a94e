"""The language of the stories in this folder. Pure: text in, a `Story` or every mistake out.

A line is one of these; `#` begins a comment, and TIME is `2s` or `300ms`:

    world: EDGE...; REGION...
    tenant: NAME JURISDICTION...            may be served there alone
    streams: N at EDGE [to REGION] [as TENANT] [of N tokens]
    at TIME cut | mend | reset LINK... [out|back] [for TIME]
    at TIME loss SHARE | rtt TIME | jitter TIME | bandwidth RATE LINK... [out|back] [for TIME]
    at TIME flap UP/DOWN [random] LINK... [out|back] [for TIME]
    at TIME kill | start | stop | resume | hang | unhang PROCESS
    at TIME wait
    expect path EDGE REGION direct | via REGION within TIME
    expect served EDGE TENANT by REGION... within TIME
    expect answer EDGE TENANT STATUS ["TEXT"] within TIME
    expect streams | failed | broken | continued [of TENANT] [at least|at most] N
    expect changes EDGE REGION at most N
    expect silence at most TIME
    expect tokens equal
    end at TIME

Times count from when every stream of the load has given its first token. What is expected `within`
a time is awaited from the step above it on; a step below waits for it, and is late if need be. What
has no time is so at the end, which comes a moment after all that is awaited, or at `end at`.
A link is named after its ends, `london-frankfurt`, or by a pattern, `*-frankfurt`; it is cut `out`
when nothing goes from the first to the second. `stop` is SIGSTOP; `hang` stops a core's engine and
leaves the rest of it alive. A stream that failed was told so; a broken one just ended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, cast

from lab.wan import units
from tests.scenarios.story import (
    ANYONE,
    Answer,
    AtTheEnd,
    Awaited,
    ChangesAtMost,
    Count,
    Links,
    PathIs,
    Process,
    ServedBy,
    SilenceAtMost,
    Step,
    Story,
    Streams,
    TokensEqual,
    Wait,
    Way,
    World,
    to_region,
)
from tests.scenarios.words import Mistake, Rest, among, words_of

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_JURISDICTION = re.compile(r"[A-Z]{2}")
_DEFAULT_TOKENS = 60
_VERBS = ("kill", "start", "stop", "resume", "hang", "unhang")
_COUNTED = ("streams", "failed", "broken", "continued")


class Mistakes(Exception):
    """Every mistake of a story, each with its line."""

    def __init__(self, name: str, found: Sequence[tuple[int, str]]) -> None:
        super().__init__("\n".join(f"{name}:{line}: {text}" for line, text in sorted(found)))
        self.found = sorted(found)


def parse(name: str, text: str) -> Story:
    """Raises `Mistakes`."""
    return _Parser(name).parse(text)


class _Parser:
    """Reads line by line; what a line means may depend on those above it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._line = 0
        self._world: World | None = None
        self._tenants: dict[str, tuple[str, ...]] = {}
        self._streams: list[Streams] = []
        self._steps: list[Step] = []
        self._expected: list[AtTheEnd] = []
        self._end_s: float | None = None

    def parse(self, text: str) -> Story:
        found: list[tuple[int, str]] = []
        for self._line, line in enumerate(text.splitlines(), 1):
            words = words_of(line)
            try:
                if words:
                    self._take(words)
            except Mistake as mistake:
                found.append((self._line, str(mistake)))
        if not found:
            found = [(self._line, text) for text in self._missing()]
        if found or self._world is None:
            raise Mistakes(self._name, found)
        return Story(
            self._name,
            self._world,
            self._tenants,
            tuple(self._streams),
            tuple(self._steps),
            tuple(self._expected),
            self._end_s or 0.0,
        )

    def _missing(self) -> list[str]:
        wanted = {
            "no world: begin with `world: EDGE...; REGION...`": self._world,
            "no `streams:`": self._streams,
            "nothing happens: no line begins with `at`": self._steps,
            "nothing is expected": self._expected or any(s.awaited for s in self._steps),
        }
        return [text for text, there in wanted.items() if not there]

    def _take(self, words: list[str]) -> None:
        if self._end_s is not None:
            raise Mistake("nothing comes after `end at`")
        kinds: dict[str, Callable[[list[str]], None]] = {
            "world:": self._take_world,
            "tenant:": self._take_tenant,
            "streams:": self._take_streams,
            "at": self._take_step,
            "expect": self._take_expectation,
            "end": self._take_end,
        }
        kind = kinds.get(words[0])
        if kind is None:
            raise Mistake(f"a line begins with {among(kinds)}, not {words[0]!r}")
        if self._world is None and kind != self._take_world:
            raise Mistake("the world comes first: `world: EDGE...; REGION...`")
        kind(words[1:])

    # What there is

    def _take_world(self, words: list[str]) -> None:
        if self._world is not None:
            raise Mistake("there is one world")
        edges, separator, regions = " ".join(words).partition(";")
        if not separator or not edges.split() or not regions.split():
            raise Mistake("a world is `world: EDGE...; REGION...`")
        names = [*edges.split(), *regions.split()]
        for name in names:
            if not _NAME.fullmatch(name):
                raise Mistake(f"{name!r} is no name: a-z, 0-9, and - within")
        if len(set(names)) < len(names):
            raise Mistake("a name is there twice")
        self._world = World(tuple(edges.split()), tuple(regions.split()))

    def _take_tenant(self, words: list[str]) -> None:
        if len(words) < 2 or not _NAME.fullmatch(words[0]):
            raise Mistake("a tenant is `tenant: NAME JURISDICTION...`")
        name, *residency = words
        if name in self._known_tenants():
            raise Mistake(f"there is a tenant {name!r} already")
        for code in residency:
            if not _JURISDICTION.fullmatch(code):
                raise Mistake(f"{code!r} is no jurisdiction: EU, AE, SG")
        self._tenants[name] = tuple(residency)

    def _known_tenants(self) -> tuple[str, ...]:
        regions = self._known_world().regions
        return (ANYONE, *map(to_region, regions), *self._tenants)

    def _known_world(self) -> World:
        assert self._world is not None  # `_take` has made sure
        return self._world

    def _take_streams(self, words: list[str]) -> None:
        if self._steps:
            raise Mistake("streams come before the first step")
        rest = Rest(words, "streams: N at EDGE [to REGION] [as TENANT] [of N tokens]")
        count = rest.number(1, 50)
        rest.literal("at")
        edge = rest.one_of("edge", self._known_world().edges)
        tenant, tokens = ANYONE, _DEFAULT_TOKENS
        if rest.maybe("to"):
            tenant = to_region(rest.one_of("region", self._known_world().regions))
        elif rest.maybe("as"):
            tenant = rest.one_of("tenant", self._known_tenants())
        if rest.maybe("of"):
            tokens = rest.number(1, 400)
            rest.literal("tokens")
        rest.end()
        self._streams.append(Streams(count, edge, tenant, tokens))

    # What happens

    def _take_step(self, words: list[str]) -> None:
        rest = Rest(words, "at TIME WHAT...")
        at_s = rest.seconds()
        if self._steps:
            before = self._steps[-1]
            if at_s < before.at_s:
                raise Mistake(f"{at_s:g}s is before the step on line {before.line}")
        verb = rest.word()
        if verb == "wait":
            rest.end()
            action: Links | Process | Wait = Wait()
        elif verb in _VERBS:
            action = self._process(verb, rest)
        else:
            action = self._links(verb, rest)
        self._steps.append(Step(self._line, at_s, action))

    def _process(self, verb: str, rest: Rest) -> Process:
        rest.form = f"at TIME {verb} PROCESS"
        names = self._known_world().processes()
        if verb in ("hang", "unhang"):
            names = tuple(name for name in names if name.startswith("core-"))
        name = rest.one_of("process", names)
        rest.end()
        return Process(verb, name)

    def _links(self, verb: str, rest: Rest) -> Links:
        rest.form = f"at TIME {verb} … LINK... [out|back] [for TIME]"
        figures = _figures(verb, rest)
        names, way, for_ms = [], cast("Way", "both"), 0.0
        while rest.words:
            if rest.words[0] in ("out", "back") and names:
                way = cast("Way", rest.word())
                break
            if rest.words[0] == "for":
                break
            names.append(self._link(rest.word()))
        if not names:
            raise Mistake(rest.form)
        if rest.maybe("for"):
            if verb in ("mend", "reset"):
                raise Mistake(f"{verb} lasts")
            for_ms = rest.seconds() * 1000
        rest.end()
        return Links(tuple(names), way, for_ms, figures)

    def _link(self, pattern: str) -> str:
        links = self._known_world().links()
        if not any(fnmatchcase(link, pattern) for link in links):
            raise Mistake(f"no link {pattern!r}: there are {', '.join(links)}")
        return pattern

    def _take_end(self, words: list[str]) -> None:
        rest = Rest(words, "end at TIME")
        rest.literal("at")
        end_s = rest.seconds()
        rest.end()
        if self._steps and end_s < self._steps[-1].at_s:
            raise Mistake("the end comes before the last step")
        self._end_s = end_s

    # What is expected

    def _take_expectation(self, words: list[str]) -> None:
        rest = Rest(words, "expect WHAT...")
        what = rest.word()
        awaited: dict[str, Callable[[Rest], PathIs | ServedBy | Answer]] = {
            "path": self._path,
            "served": self._served,
            "answer": self._answer,
        }
        if what in awaited:
            self._await(awaited[what](rest), rest)
        elif what in _COUNTED:
            self._expected.append(AtTheEnd(self._line, self._count(what, rest)))
        elif what == "changes":
            self._expected.append(AtTheEnd(self._line, self._changes(rest)))
        elif what == "silence":
            rest.form = "expect silence at most TIME"
            rest.literal("at")
            rest.literal("most")
            self._expected.append(AtTheEnd(self._line, SilenceAtMost(rest.seconds())))
        elif what == "tokens":
            rest.form = "expect tokens equal"
            rest.literal("equal")
            self._expected.append(AtTheEnd(self._line, TokensEqual()))
        else:
            known = (*awaited, *_COUNTED, "changes", "silence", "tokens")
            raise Mistake(f"{among(known)} can be expected, not {what!r}")
        rest.end()

    def _await(self, what: PathIs | ServedBy | Answer, rest: Rest) -> None:
        rest.literal("within")
        within_s = rest.seconds()
        if not self._steps:
            raise Mistake("`within` counts from a step, and none is above")
        step = self._steps[-1]
        awaited = (*step.awaited, Awaited(self._line, within_s, what))
        self._steps[-1] = replace(step, awaited=awaited)

    def _path(self, rest: Rest) -> PathIs:
        rest.form = "expect path EDGE REGION direct | via REGION within TIME"
        world = self._known_world()
        edge = rest.one_of("edge", world.edges)
        region = rest.one_of("region", world.regions)
        if rest.maybe("direct"):
            return PathIs(edge, region, "direct")
        rest.literal("via")
        others = tuple(r for r in world.regions if r != region)
        return PathIs(edge, region, f"via {rest.one_of('relay', others)}")

    def _served(self, rest: Rest) -> ServedBy:
        rest.form = "expect served EDGE TENANT by REGION... within TIME"
        world = self._known_world()
        edge = rest.one_of("edge", world.edges)
        tenant = rest.one_of("tenant", self._known_tenants())
        rest.literal("by")
        regions = [rest.one_of("region", world.regions)]
        while rest.words and rest.words[0] != "within":
            regions.append(rest.one_of("region", world.regions))
        return ServedBy(edge, tenant, tuple(regions))

    def _answer(self, rest: Rest) -> Answer:
        rest.form = 'expect answer EDGE TENANT STATUS ["TEXT"] within TIME'
        edge = rest.one_of("edge", self._known_world().edges)
        tenant = rest.one_of("tenant", self._known_tenants())
        status, text = rest.number(200, 599), ""
        if rest.words and rest.words[0].startswith('"'):
            text = rest.word().strip('"')
        return Answer(edge, tenant, status, text)

    def _changes(self, rest: Rest) -> ChangesAtMost:
        rest.form = "expect changes EDGE REGION at most N"
        edge = rest.one_of("edge", self._known_world().edges)
        region = rest.one_of("region", self._known_world().regions)
        rest.literal("at")
        rest.literal("most")
        return ChangesAtMost(edge, region, rest.number(0, 1000))

    def _count(self, what: str, rest: Rest) -> Count:
        rest.form = f"expect {what} [of TENANT] [at least|at most] N"
        tenant, relation = "", "=="
        if rest.maybe("of"):
            tenant = rest.one_of("tenant", self._known_tenants())
        if rest.maybe("at"):
            relation = ">=" if rest.maybe("least") else "<="
            if relation == "<=":
                rest.literal("most")
        return Count(what, tenant, relation, rest.number(0, 1_000_000))


def _figures(verb: str, rest: Rest) -> dict[str, Any]:
    if verb == "cut":
        return {"cut": True}
    if verb == "mend":
        return {"cut": False, "flap": None}
    if verb == "reset":
        return {}
    if verb == "flap":
        up, _, down = rest.word().partition("/")
        times = {"up_ms": rest.value(units.milliseconds, up),
                 "down_ms": rest.value(units.milliseconds, down)}  # fmt: skip
        return {"flap": times | {"random": rest.maybe("random")}}
    if verb == "loss":
        return {"loss": rest.value(units.share)}
    if verb in ("rtt", "jitter"):
        return {f"{verb}_ms": rest.value(units.milliseconds)}
    if verb == "bandwidth":
        return {"bandwidth_bit_per_s": rest.value(units.bandwidth)}
    known = ("cut", "mend", "reset", "loss", "rtt", "jitter", "bandwidth", "flap", "wait", *_VERBS)
    raise Mistake(f"a step is {among(known)}, not {verb!r}")

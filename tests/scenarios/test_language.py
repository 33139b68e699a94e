"""Stories are read as they are written; every mistake is told with its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scenarios.language import Mistakes, parse
from tests.scenarios.story import (
    Answer,
    ChangesAtMost,
    Count,
    Links,
    PathIs,
    Process,
    ServedBy,
    SilenceAtMost,
    Streams,
    TokensEqual,
    Wait,
    World,
)

WORLD = "world: london tokyo; singapore frankfurt dubai\n"
BASE = WORLD + "streams: 2 at london\n"

WHOLE = (
    BASE
    + """
# A comment
tenant: gulfbank AE EU
streams: 1 at tokyo to dubai of 80 tokens   # and another
streams: 3 at london as gulfbank

at 1s cut london-frankfurt out for 2s
  expect path london frankfurt via dubai within 500ms
at 1.5s loss 30% tokyo-singapore *-dubai back
at 1.5s rtt 200ms tokyo-singapore
at 2s bandwidth 64kbit london-frankfurt
at 2s flap 300ms/200ms random london-*
at 2s mend london-frankfurt
at 2s reset *
at 3s kill core-dubai
  expect answer london gulfbank 503 "no region" within 2s
  expect served tokyo anyone by singapore frankfurt within 1s
at 4s wait
expect failed of gulfbank at least 1
expect broken 0
expect changes london frankfurt at most 4
expect silence at most 800ms
expect tokens equal
end at 6s
"""
)


def test_a_whole_story() -> None:
    story = parse("whole", WHOLE)
    assert story.world == World(("london", "tokyo"), ("singapore", "frankfurt", "dubai"))
    assert story.tenants == {"gulfbank": ("AE", "EU")}
    assert story.streams == (
        Streams(2, "london", "anyone", 60),
        Streams(1, "tokyo", "to-dubai", 80),
        Streams(3, "london", "gulfbank", 60),
    )
    assert [step.at_s for step in story.steps] == [1, 1.5, 1.5, 2, 2, 2, 2, 3, 4]
    assert [step.action for step in story.steps] == [
        Links(("london-frankfurt",), "out", 2000, {"cut": True}),
        Links(("tokyo-singapore", "*-dubai"), "back", 0, {"loss": 0.3}),
        Links(("tokyo-singapore",), "both", 0, {"rtt_ms": 200}),
        Links(("london-frankfurt",), "both", 0, {"bandwidth_bit_per_s": 64_000}),
        Links(("london-*",), "both", 0, {"flap": {"up_ms": 300, "down_ms": 200, "random": True}}),
        Links(("london-frankfurt",), "both", 0, {"cut": False, "flap": None}),
        Links(("*",), "both", 0, {}),
        Process("kill", "core-dubai"),
        Wait(),
    ]
    awaited = [a for step in story.steps for a in step.awaited]
    assert [(a.within_s, a.what) for a in awaited] == [
        (0.5, PathIs("london", "frankfurt", "via dubai")),
        (2, Answer("london", "gulfbank", 503, "no region")),
        (1, ServedBy("tokyo", "anyone", ("singapore", "frankfurt"))),
    ]
    assert [e.what for e in story.expected] == [
        Count("failed", "gulfbank", ">=", 1),
        Count("broken", "", "==", 0),
        ChangesAtMost("london", "frankfurt", 4),
        SilenceAtMost(0.8),
        TokensEqual(),
    ]
    assert story.end_s == 6


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("when 2s cut london-dubai", "a line begins with world:, tenant:"),
        ("at cut london-dubai", "no duration"),
        ("at 2 cut london-dubai", "no duration"),
        ("at 2s", "something is missing: at TIME WHAT"),
        ("at 2s burn london-dubai", "a step is cut, mend"),
        ("at 2s cut", "LINK..."),
        ("at 2s cut oslo-dubai", "no link 'oslo-dubai': there are london-singapore"),
        ("at 2s cut out london-dubai", "no link 'out'"),
        ("at 2s cut london-dubai out back", "too much: 'back'"),
        ("at 2s cut london-dubai for", "something is missing"),
        ("at 2s mend london-dubai for 2s", "mend lasts"),
        ("at 2s loss 130% london-dubai", "no share: 30%"),
        ("at 2s bandwidth fast london-dubai", "no bandwidth"),
        ("at 2s flap 2s london-dubai", "no duration"),
        ("at 2s kill core-oslo", "no process 'core-oslo': there are core-singapore"),
        ("at 2s wait here", "too much: 'here'"),
        ("at 2s hang edge-london", "no process 'edge-london'"),
        ("at 2s kill core-dubai now", "too much: 'now'"),
        ("at 2000s kill core-dubai", "longer than a story may be"),
        ("tenant: gulfbank", "tenant: NAME JURISDICTION..."),
        ("tenant: gulfbank eu", "'eu' is no jurisdiction"),
        ("tenant: anyone EU", "there is a tenant 'anyone' already"),
        ("tenant: to-dubai EU", "there is a tenant 'to-dubai' already"),
        ("streams: many at london", "no number from 1 to 50"),
        ("streams: 2 at oslo", "no edge 'oslo'"),
        ("streams: 2 at london as nobody", "no tenant 'nobody'"),
        ("streams: 2 at london to oslo", "no region 'oslo'"),
        ("streams: 2 at london of 5", "something is missing"),
        ("world: oslo; dubai", "there is one world"),
        ("expect luck", "can be expected, not 'luck'"),
        ("expect path london dubai via dubai within 2s", "no relay 'dubai'"),
        ("expect failed", "something is missing"),
        ("expect failed few", "no number"),
        ("expect failed at last 1", "'most' is missing before 'last'"),
        ("expect failed of nobody 1", "no tenant 'nobody'"),
        ("expect changes london", "something is missing: expect changes"),
        ("expect tokens", "something is missing: expect tokens equal"),
        ("expect silence at most 1", "no duration"),
        ("expect served london anyone by dubai", "something is missing"),
        ("expect answer london anyone 99 within 1s", "no number from 200"),
        ("expect path london dubai direct within 1s", "counts from a step, and none is above"),
        ("end at 2s\nat 3s cut london-dubai", "nothing comes after"),
    ],
)
def test_a_mistake_is_told_with_its_line(line: str, says: str) -> None:
    with pytest.raises(Mistakes) as caught:
        parse("wrong", BASE + "\n" + line + "\n")
    text = str(caught.value)
    assert says in text
    assert text.startswith(("wrong:4: ", "wrong:5: "))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no world"),
        ("streams: 1 at london", "wrong:1: the world comes first"),
        ("world: london dubai", "a world is"),
        ("world: london; ", "a world is"),
        ("world: London; dubai", "'London' is no name"),
        ("world: dubai; dubai", "twice"),
        (WORLD, "no `streams:`"),
        (BASE, "nothing happens"),
        (BASE + "at 1s cut london-dubai", "nothing is expected"),
        (BASE + "at 2s cut london-dubai\nat 1s mend london-dubai", "before the step on line 3"),
        (BASE + "at 2s cut london-dubai\nstreams: 1 at tokyo", "streams come before"),
        (BASE + "at 3s cut london-dubai\nend at 2s", "the end comes before"),
    ],
)
def test_what_is_wrong_with_the_whole(text: str, says: str) -> None:
    with pytest.raises(Mistakes, match="wrong:") as caught:
        parse("wrong", text)
    assert says in str(caught.value)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(Mistakes) as caught:
        parse("wrong", BASE + "at 1s cut oslo\nat 1s kill dubai\nexpect luck\n")
    assert [line for line, _ in caught.value.found] == [3, 4, 5]


@given(st.text(max_size=200))
def test_any_text_is_a_story_or_has_mistakes(text: str) -> None:
    try:
        parse("any", BASE + text)
    except Mistakes as mistakes:
        assert mistakes.found


@given(st.lists(st.sampled_from(WHOLE.split()), max_size=40), st.integers(0, 30))
def test_any_words_of_the_language_are_a_story_or_have_mistakes(words: list[str], cut: int) -> None:
    lines = [" ".join(words[:cut]), " ".join(words[cut:])]
    try:
        parse("any", BASE + "\n".join(lines))
    except Mistakes as mistakes:
        assert mistakes.found

"""Text from tokens: whole characters, stop strings, and going on where another region stopped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from region_core.engine.detokenise import Detokeniser


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, the last one as long as it takes."""
    pieces, at = [], 0
    for size in sizes:
        if at >= len(data):
            break
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]] if at < len(data) else pieces


def naive(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[str, bool, int]:
    """The whole text, whether a stop string ended it, and after how many tokens.

    After each token the text so far is looked through from its beginning.
    """
    for count in range(1, len(pieces) + 1):
        data = b"".join(pieces[:count])
        whole = data.decode(errors="ignore")
        found = [whole.find(stop) for stop in stops if stop in whole]
        if found:
            return whole[: min(found)], True, count
    return b"".join(pieces).decode(errors="replace"), False, len(pieces)


texts = st.text(alphabet="abcé海🙂 \n", max_size=40)
stop_lists = st.lists(st.text(alphabet="abcé海🙂 ", min_size=1, max_size=4), max_size=3)


@given(text=texts, sizes=st.lists(st.integers(1, 5), max_size=40), stops=stop_lists)
def test_like_looking_through_the_whole_text(text: str, sizes: list[int], stops: list[str]) -> None:
    pieces = cut(text.encode(), sizes)
    d = Detokeniser(pieces.__getitem__, stops)
    given_out, used = "", 0
    for index in range(len(pieces)):
        given_out += d.feed(index)
        used += 1
        assert "\ufffd" not in given_out
        if d.stopped:
            break
    given_out += d.finish()
    assert (given_out, d.stopped, used) == naive(pieces, tuple(stops))


@given(
    text=texts, sizes=st.lists(st.integers(1, 5), max_size=40), stops=stop_lists,
    share=st.floats(0, 1),
)  # fmt: skip
def test_resuming_gives_the_rest_exactly(
    text: str, sizes: list[int], stops: list[str], share: float
) -> None:
    """Whatever was given out for some tokens, a second detokeniser goes on right behind it."""
    pieces = cut(text.encode(), sizes)
    first = Detokeniser(pieces.__getitem__, stops)
    at = int(share * len(pieces))
    before = "".join(first.feed(index) for index in range(at))
    second = Detokeniser(pieces.__getitem__, stops)
    for index in range(at):
        second.feed(index)
    after = "".join(second.feed(index) for index in range(at, len(pieces))) + second.finish()
    alone = Detokeniser(pieces.__getitem__, stops)
    whole = "".join(alone.feed(index) for index in range(len(pieces))) + alone.finish()
    assert before + after == whole


def test_an_emoji_that_spans_tokens_comes_whole() -> None:
    pieces = ["👍🏽".encode()[i : i + 1] for i in range(8)]
    d = Detokeniser(pieces.__getitem__)
    assert [d.feed(i) for i in range(8)] == ["", "", "", "👍", "", "", "", "🏽"]


def test_an_unfinished_character_at_the_end() -> None:
    d = Detokeniser([b"a", b"\xf0\x9f"].__getitem__)
    assert d.feed(0) + d.feed(1) == "a"
    assert d.finish() == "\ufffd"


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    pieces = [b"one\n", b"\nUs", b"er:", b" two"]
    d = Detokeniser(pieces.__getitem__, ("\n\nUser:",))
    assert [d.feed(i) for i in range(4)] == ["one", "", "", ""]
    assert d.stopped and d.finish() == ""


def test_what_only_began_like_a_stop_string_comes_out() -> None:
    pieces = [b"one\n", b"\nUs", b"ual"]
    d = Detokeniser(pieces.__getitem__, ("\n\nUser:",))
    assert [d.feed(i) for i in range(3)] == ["one", "", "\n\nUsual"]
    d = Detokeniser(pieces.__getitem__, ("\n\nUser:",))
    assert d.feed(0) + d.feed(1) + d.finish() == "one\n\nUs"

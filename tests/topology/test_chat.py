"""OpenAI's shapes: what is accepted, what is refused and how, what is written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology.wire import chat
from topology.wire.chat import ChatError


def body(**fields: object) -> bytes:
    base: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return json.dumps(base | fields).encode()


def refused(data: bytes) -> ChatError:
    with pytest.raises(ChatError) as caught:
        chat.parse_request(data)
    return caught.value


def test_defaults() -> None:
    request = chat.parse_request(body())
    assert request.model == "m"
    assert (request.stream, request.temperature, request.top_p) == (False, 1.0, 1.0)
    assert request.messages == (chat.Message("user", "hi"),)
    assert not request.deterministic


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat.parse_request(body(messages=[{"role": "developer", "content": parts}]))
    assert request.messages == (chat.Message("system", "ab"),)


@pytest.mark.parametrize(
    ("fields", "deterministic"),
    [({"temperature": 0}, True), ({"seed": 3}, True), ({"temperature": 0.1}, False)],
)
def test_deterministic(fields: dict[str, object], deterministic: bool) -> None:
    assert chat.parse_request(body(**fields)).deterministic is deterministic


def test_what_routers_add_to_each_request_is_taken() -> None:
    added: dict[str, object] = {
        "no_stop_trim": False,
        "ignore_eos": False,
        "continue_final_message": False,
        "skip_special_tokens": True,
        "separate_reasoning": True,
        "stream_reasoning": True,
        "include_reasoning": True,
        "return_hidden_states": False,
    }
    assert chat.parse_request(body(**added)) == chat.parse_request(body())


def test_max_completion_tokens_wins() -> None:
    request = chat.parse_request(body(max_tokens=5, max_completion_tokens=7))
    assert request.max_tokens == 7


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"model": 5}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"made_up": 1}, "made_up"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
    ],
)
def test_a_refusal_names_its_parameter(fields: dict[str, object], param: str) -> None:
    error = refused(body(**fields))
    assert error.status == 400
    assert error.param == param
    form = json.loads(chat.error_body(error))["error"]
    assert form["type"] == "invalid_request_error"
    assert set(form) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        body()[:-5],
        b'{"model":"\xff","messages":[]}',
        b"[" * 100_000,
        b'{"messages":' * 50_000,
    ],
)
def test_what_is_not_a_request_is_refused(data: bytes) -> None:
    assert refused(data).status == 400


def test_another_encoding_is_named_without_a_misleading_place() -> None:
    # The decoder counts from the start of the text it was in, not of the body.
    told = str(refused('{"model":"caf\u00e9"}'.encode("latin-1")))
    assert told == "The body is not UTF-8: unexpected end of data."


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert refused(data).status == 400


@given(st.text(), st.text(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_replies_are_what_openai_clients_read(text: str, model: str, a: int, b: int) -> None:
    usage = chat.Usage.of(a, b)
    whole = json.loads(chat.completion("id", 7, model, text, "stop", usage))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": text}
    assert whole["usage"]["total_tokens"] == a + b
    chunks = chat.ChunkEncoder("id", 7, model, include_usage=True)
    events = [chunks.role(), chunks.text(text), chunks.finish("length"), chunks.usage(usage)]
    decoded = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert all(event.endswith(b"\n\n") for event in events)
    assert decoded[1]["choices"][0]["delta"] == {"content": text}
    assert decoded[2]["choices"][0]["finish_reason"] == "length"
    assert decoded[2]["usage"] is None
    assert decoded[3]["choices"] == []
    assert "usage" not in json.loads(
        chat.ChunkEncoder("id", 7, model, include_usage=False).role().removeprefix(b"data: ")
    )


@given(st.text(), st.text(), st.text(), st.booleans())
def test_an_event_of_text_is_what_encoding_it_whole_gives(
    request_id: str, model: str, text: str, usage: bool
) -> None:
    chunks = chat.ChunkEncoder(request_id, 7, model, usage)
    assert chunks.text(text) == chunks._event(chat._Delta(content=text), None)
    # Names that look like what the encoder cuts its events at.
    odd = chat.ChunkEncoder('"content":""', 7, '"content":""' + model, usage)
    assert odd.text(text) == odd._event(chat._Delta(content=text), None)

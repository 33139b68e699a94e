"""OpenAI's chat completions on the wire: requests in, replies, chunks and errors out.

Edges and cores speak the same API, so its shapes are defined once, here. A request is checked
whole before anything is done for it; a parameter we cannot honour is refused, never ignored,
because an answer that silently disobeys is worse than an error. Source of the shapes: the
OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from runtime.errors import TradewindError

MAX_MESSAGES = 1024
MAX_STOPS = 4


class ChatError(TradewindError):
    """A request that ends with an error in OpenAI's form.

    `status` is the HTTP status; `type`, `code` and `param` are the fields of the error object.
    `retry_after_ms` says when a try may succeed, where that is known.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - OpenAI's own name for the field
        code: str | None = None,
        param: str | None = None,
        retryable: bool = False,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_ms = retry_after_ms
        self.type = type
        self.code = code
        self.param = param
        self.retryable = retryable

    def after(self, retry_after_ms: int) -> ChatError:
        """The same, with another time to come back."""
        return ChatError(
            self.status,
            self.message,
            type=self.type,
            code=self.code,
            param=self.param,
            retryable=self.retryable,
            retry_after_ms=retry_after_ms,
        )


class Message(Struct, frozen=True):
    """One turn. `content` is plain text: text parts are joined when the request is read."""

    role: str
    content: str


class ChatRequest(Struct, frozen=True, kw_only=True):
    """A checked request. `max_tokens` None means the model's own default."""

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    include_usage: bool = False  # stream_options.include_usage
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    user: str = ""  # whoever asks, as the tenant tells its users apart; of no consequence for it

    @property
    def deterministic(self) -> bool:
        """Whether the same request must give the same answer, so that it may be cached."""
        return self.temperature == 0 or self.seed is not None


# The request as it is written. Fields that change nothing here are accepted; those that would
# have to change the answer are typed so narrowly that only their neutral value passes.


class _TextPart(Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class _Turn(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]
    name: str | None = None


class _StreamOptions(Struct):
    include_usage: bool = False


class _ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text"]


class _Body(Struct, forbid_unknown_fields=True):
    model: str
    messages: list[_Turn]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    # Only the neutral value:
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: _ResponseFormat | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    # Of no consequence for the answer:
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # What sglang-router and vllm-router write into each request. Only the neutral value:
    no_stop_trim: bool = False
    ignore_eos: bool = False
    continue_final_message: bool = False
    return_hidden_states: bool = False
    skip_special_tokens: bool = True
    # Of models that reason aloud; ours do not:
    separate_reasoning: bool = True
    stream_reasoning: bool = True
    include_reasoning: bool = True


_ROUTERS_FLAGS = ("no_stop_trim", "ignore_eos", "continue_final_message", "return_hidden_states")
_NOTHING = (None,) * 8  # is given of what must be neutral
_DECODER = msgspec.json.Decoder(_Body)
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD = re.compile(r"`([^`]+)`")


def parse_request(body: bytes) -> ChatRequest:
    """The checked request in `body` (JSON, UTF-8), or `ChatError` with status 400."""
    try:
        raw = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _from_validation(str(error)) from error
    except msgspec.DecodeError as error:
        raise ChatError(400, f"The body is not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ChatError(400, f"The body is not UTF-8: {error.reason}.") from error
    except RecursionError as error:
        raise ChatError(400, "The body is nested too deeply.") from error
    _refuse_unsupported(raw)
    return ChatRequest(
        model=raw.model,
        messages=_messages(raw.messages),
        stream=bool(raw.stream),
        include_usage=bool(raw.stream_options and raw.stream_options.include_usage),
        max_tokens=_max_tokens(raw),
        temperature=_between("temperature", raw.temperature, 0.0, 2.0, default=1.0),
        top_p=_top_p(raw.top_p),
        seed=_seed(raw.seed),
        stop=_stop(raw.stop),
        user=raw.safety_identifier or raw.user or "",
    )


def _from_validation(text: str) -> ChatError:
    found = _PATH.search(text)
    path = found.group(1) if found else ""
    message = _PATH.sub("", text)
    if message.startswith("Object contains unknown field"):
        name = _FIELD.search(message)
        param = ".".join(part for part in (path, name.group(1) if name else "") if part)
        return ChatError(
            400, f"Unrecognized request argument: {param}", code="unknown_parameter", param=param
        )
    if message.startswith("Object missing required field"):
        name = _FIELD.search(message)
        param = ".".join(part for part in (path, name.group(1) if name else "") if part)
        return ChatError(
            400,
            f"Missing required parameter: '{param}'.",
            code="missing_required_parameter",
            param=param,
        )
    return ChatError(
        400,
        f"Invalid value for '{path or 'the body'}': {message}.",
        code="invalid_type",
        param=path or None,
    )


def _refuse_unsupported(raw: _Body) -> None:
    given = (
        raw.n,
        raw.frequency_penalty,
        raw.presence_penalty,
        raw.logprobs,
        raw.top_logprobs,
        raw.logit_bias,
        raw.tools,
        raw.tool_choice,
    )
    if given != _NOTHING:  # measured: to look at each of them costs 0.7 µs
        _refuse_all_but_neutral(raw)
    if (
        raw.no_stop_trim
        or raw.ignore_eos
        or raw.continue_final_message
        or raw.return_hidden_states
        or not raw.skip_special_tokens
    ):
        _refuse_flags(raw)


def _refuse_all_but_neutral(raw: _Body) -> None:
    neutral: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("n", raw.n, (None, 1)),
        ("frequency_penalty", raw.frequency_penalty, (None, 0.0)),
        ("presence_penalty", raw.presence_penalty, (None, 0.0)),
        ("logprobs", raw.logprobs, (None, False)),
        ("top_logprobs", raw.top_logprobs, (None, 0)),
        ("logit_bias", raw.logit_bias, (None, {})),
        ("tools", raw.tools, (None, [])),
        ("tool_choice", raw.tool_choice, (None, "none", "auto")),
    )
    for name, value, allowed in neutral:
        if value not in allowed:
            raise _unsupported(name)


def _refuse_flags(raw: _Body) -> None:
    for name in _ROUTERS_FLAGS:
        if getattr(raw, name):
            raise _unsupported(name)
    if not raw.skip_special_tokens:
        raise _unsupported("skip_special_tokens")


def _unsupported(name: str) -> ChatError:
    return ChatError(
        400,
        f"'{name}' is not supported here with the value given; leave it out.",
        code="unsupported_parameter",
        param=name,
    )


def _messages(turns: list[_Turn]) -> tuple[Message, ...]:
    if not 1 <= len(turns) <= MAX_MESSAGES:
        raise ChatError(
            400,
            f"'messages' must hold 1 to {MAX_MESSAGES} messages, not {len(turns)}.",
            code="invalid_value",
            param="messages",
        )
    return tuple([_message(turn) for turn in turns])  # a generator would take longer


def _message(turn: _Turn) -> Message:
    role, content = turn.role, turn.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content)
    return Message("system" if role == "developer" else role, content)


def _max_tokens(raw: _Body) -> int | None:
    name = "max_tokens" if raw.max_completion_tokens is None else "max_completion_tokens"
    value = raw.max_tokens if raw.max_completion_tokens is None else raw.max_completion_tokens
    if value is not None and not 1 <= value < 2**31:
        raise ChatError(
            400,
            f"'{name}' must be at least 1 and below 2^31, not {value}.",
            code="invalid_value",
            param=name,
        )
    return value


def _between(name: str, value: float | None, low: float, high: float, default: float) -> float:
    if value is None:
        return default
    if not low <= value <= high:
        raise ChatError(
            400,
            f"'{name}' must lie between {low:g} and {high:g}, not {value:g}.",
            code="invalid_value",
            param=name,
        )
    return value


def _top_p(value: float | None) -> float:
    if value == 0:
        raise ChatError(400, "'top_p' must be greater than 0.", code="invalid_value", param="top_p")
    return _between("top_p", value, 0.0, 1.0, default=1.0)


def _seed(value: int | None) -> int | None:
    if value is not None and not -(2**63) <= value < 2**63:
        raise ChatError(
            400, "'seed' must fit a signed 64-bit integer.", code="invalid_value", param="seed"
        )
    return value


def _stop(value: str | list[str] | None) -> tuple[str, ...]:
    stops = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    if len(stops) > MAX_STOPS or "" in stops:
        raise ChatError(
            400,
            f"'stop' takes at most {MAX_STOPS} texts, none of them empty.",
            code="invalid_value",
            param="stop",
        )
    return stops


# Replies.


class Usage(Struct, frozen=True):
    """Token counters of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        return cls(prompt, completion, prompt + completion)


class _Answer(Struct):
    role: str
    content: str


class _Choice(Struct):
    index: int
    message: _Answer
    logprobs: None
    finish_reason: str


class _Completion(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: tuple[_Choice, ...]
    usage: Usage


class _Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class _ChunkChoice(Struct):
    index: int
    delta: _Delta
    logprobs: None
    finish_reason: str | None


class _Chunk(Struct):
    id: str
    object: str
    created: int
    model: str
    choices: tuple[_ChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET


_ENCODER = msgspec.json.Encoder()
_encode = _ENCODER.encode
_NO_TEXT = b'"content":""'
DONE = b"data: [DONE]\n\n"


def completion(
    request_id: str, created_s: int, model: str, text: str, finish_reason: str, usage: Usage
) -> bytes:
    """The body of a whole answer. `request_id` becomes `chatcmpl-<request_id>`."""
    choice = _Choice(0, _Answer("assistant", text), None, finish_reason)
    return _ENCODER.encode(
        _Completion("chatcmpl-" + request_id, "chat.completion", created_s, model, (choice,), usage)
    )


class ChunkEncoder:
    """Encodes one streamed answer, event by event, each as one SSE `data:` block.

    Events of text differ in their text alone, so what is around it is encoded once.
    """

    __slots__ = ("_after", "_before", "_head", "_usage")

    def __init__(self, request_id: str, created_s: int, model: str, include_usage: bool) -> None:
        self._head = ("chatcmpl-" + request_id, "chat.completion.chunk", created_s, model)
        self._usage: UnsetType | None = None if include_usage else UNSET
        # Within a JSON string a quote is escaped, so this is found nowhere else.
        before, empty, self._after = self._event(_Delta(content=""), None).partition(_NO_TEXT)
        self._before = before + empty[:-2]

    def role(self) -> bytes:
        """The first event: who speaks."""
        return self._event(_Delta("assistant", ""), None)

    def text(self, text: str) -> bytes:
        return self._before + _encode(text) + self._after

    def finish(self, reason: str) -> bytes:
        return self._event(_Delta(), reason)

    def usage(self, usage: Usage) -> bytes:
        """The event before [DONE], when the client asked for it."""
        return b"data: " + _ENCODER.encode(_Chunk(*self._head, (), usage)) + b"\n\n"

    def _event(self, delta: _Delta, finish_reason: str | None) -> bytes:
        choice = _ChunkChoice(0, delta, None, finish_reason)
        chunk = _Chunk(*self._head, (choice,), self._usage)
        return b"data: " + _ENCODER.encode(chunk) + b"\n\n"


class ModelEntry(Struct, frozen=True):
    """One line of /v1/models."""

    id: str
    created: int
    owned_by: str
    object: str = "model"


def models_body(models: tuple[ModelEntry, ...]) -> bytes:
    """The body of GET /v1/models."""
    return _ENCODER.encode({"object": "list", "data": models})


def error_body(error: ChatError) -> bytes:
    """The body of an error, in OpenAI's form."""
    return _ENCODER.encode(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def error_event(error: ChatError) -> bytes:
    """An error that ends a stream, as one SSE event."""
    return b"data: " + error_body(error) + b"\n\n"

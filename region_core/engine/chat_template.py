"""A model's chat template: Jinja from a file of weights, so it runs in a sandbox."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from region_core.errors import Refused, WeightsUnsupported
from topology.wire.chat import Message

# Splits a special token's text inside a message, so that it is not read as that token. U+FDD0
# is a noncharacter, reserved by Unicode for such internal use.
_BREAK = "\ufdd0"


class ChatTemplate:
    """Renders conversations to the text that the model was trained on."""

    def __init__(self, source: str, specials: Iterable[str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise WeightsUnsupported(f"the chat template is not valid Jinja: {error}") from error
        self._specials = tuple((s, s[:1] + _BREAK + s[1:]) for s in specials)

    def render(self, messages: Sequence[Message]) -> list[str]:
        """The prompt, in pieces to be tokenised one by one.

        There is one piece, unless a message holds the text of a special token: then the text
        is cut inside it, so that it stays text.
        """
        turns = [{"role": m.role, "content": self._inert(m.content)} for m in messages]
        values: dict[str, Any] = {"messages": turns, "add_generation_prompt": True}
        try:
            text = self._template.render(values)
        except jinja2.TemplateError as error:
            raise Refused(
                "invalid", f"The model's chat template: {error}", status=400, param="messages"
            ) from error
        return text.split(_BREAK)

    def _inert(self, content: str) -> str:
        content = content.replace(_BREAK, "\ufffd")
        for special, broken in self._specials:
            if special in content:
                content = content.replace(special, broken)
        return content


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

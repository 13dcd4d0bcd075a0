"""Which characters of a rendered conversation the assistant wrote."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import TemplateError

from fisherscope.errors import DataError

Span = tuple[int, int]

_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
# Unicode noncharacters: no text is meant to contain them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


def render_chat(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[str, list[Span]]:
    """Render a conversation and find the assistant's turns in it.

    Where the chat template has ``{% generation %}`` tags, they say what the assistant
    wrote. Otherwise a turn reaches from the end of the generation prompt before it to the
    end of the conversation up to and including it, its end-of-turn marker included.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation.

    Returns:
        The rendered text and the half-open character spans of the assistant's turns.

    Raises:
        DataError: If there is no chat template, if it refuses the conversation, or if it
            renders earlier turns differently once later ones are there.
    """
    try:
        template = tokenizer.get_chat_template()
    except (AttributeError, ValueError) as error:
        raise DataError(
            "the tokenizer has no chat template, which 'messages' needs: set "
            "tokenizer.chat_template, use the tokenizer of a chat model, or write rows with "
            "'prompt' and 'completion'"
        ) from error
    text = _render(tokenizer, template, messages)
    if _TAG.search(template):
        return text, _tagged_spans(tokenizer, template, messages, text)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            raise DataError(
                "the conversation begins with the assistant, so where its header ends cannot be "
                "told: begin with a user or system message, or mark what the assistant wrote "
                "with {% generation %} tags in the chat template"
            )
        before = _render(tokenizer, template, messages[:index], add_generation_prompt=True)
        through = _render(tokenizer, template, messages[: index + 1])
        if not text.startswith(through) or not through.startswith(before):
            raise DataError(
                f"the chat template renders the start of the conversation differently once "
                f"messages[{index}] or later ones are there, so what the assistant wrote cannot "
                "be told: mark it with {% generation %} tags in the template, or write rows "
                "with 'prompt' and 'completion'"
            )
        spans.append((len(before), len(through)))
    return text, spans


def _tagged_spans(
    tokenizer: Any, template: str, messages: list[dict[str, Any]], text: str
) -> list[Span]:
    # The mask that apply_chat_template itself returns runs on to the end of the sequence when
    # a span ends in white space that the tokenizer trims, so only the tags are taken from there.
    def mark(match: re.Match[str]) -> str:
        left, end, right = match.groups()
        # A block, not an expression: the line break after a block is trimmed, as after the tag.
        return f"{{%{left} if true %}}{_CLOSE if end else _OPEN}{{% endif {right}%}}"

    marked = _render(tokenizer, _TAG.sub(mark, template), messages)
    if marked.replace(_OPEN, "").replace(_CLOSE, "") != text:
        raise DataError(
            "the {% generation %} tags of the chat template could not be followed in this "
            "conversation: write rows with 'prompt' and 'completion' instead"
        )
    spans: list[Span] = []
    start = position = 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", marked):
        if piece == _OPEN:
            start = position
        elif piece == _CLOSE:
            spans.append((start, position))
        else:
            position += len(piece)
    return spans


def _render(
    tokenizer: Any,
    template: str,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"the chat template refuses the conversation: {error}") from error

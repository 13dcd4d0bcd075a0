"""Which tokens of a conversation are supervised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from fisherscope.data import Example, read_jsonl
from fisherscope.errors import DataError

Write = Callable[..., Path]

HEADER = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = HEADER + "{{ m['content'] }}<|im_end|>\n{% endfor %}" + PROMPT
# The line breaks and the dashes make the white space around the tags matter.
TAGGED = (
    HEADER + "{% if m['role'] == 'assistant' %}\n"
    "{%- generation -%}\n  {{ m['content'] }}<|im_end|>\n  {% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}" + PROMPT
)
# The content alone is tagged, after a blank that byte-level tokens swallow.
INLINE = (
    "{% for m in messages %}{{ m['role'] }}: {% generation %}{% if m['role'] == 'assistant' %}"
    "{{ m['content'] }}{% endif %}{% endgeneration %}{% if m['role'] != 'assistant' %}"
    "{{ m['content'] }}{% endif %};{% endfor %}"
)
TALK = [
    {"role": "system", "content": "the cat"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the mat"},
    {"role": "user", "content": "two plus three"},
    {"role": "assistant", "content": "is five"},
]


def pieces(tokenizer: Any, example: Example) -> list[str]:
    """The supervised stretches of an example as text."""
    assert example.labels is not None
    tokens = example.inputs["input_ids"].tolist()
    runs: list[list[int]] = []
    before = False
    for token, label in zip(tokens, example.labels.tolist(), strict=True):
        assert label in {token, -100}
        if label == token:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = label == token
    return [tokenizer.decode(run) for run in runs]


def test_turns_by_prefixes(plain_tokenizer: Any, write: Write) -> None:
    # Catches: the header of a turn or a user's turn supervised, the end marker left out, a start
    # token added to the template's own text.
    plain_tokenizer.chat_template = PLAIN
    (row,) = read_jsonl(write({"messages": TALK}), plain_tokenizer)
    assert pieces(plain_tokenizer, row) == ["the mat<|im_end|>\n", "is five<|im_end|>\n"]
    text = plain_tokenizer.apply_chat_template(TALK, tokenize=False)
    assert plain_tokenizer.decode(row.inputs["input_ids"]) == text


def test_turns_by_tags_agree_with_transformers(plain_tokenizer: Any, write: Write) -> None:
    # Catches: tags replaced in a way that moves white space, spans off by one.
    plain_tokenizer.chat_template = TAGGED
    (row,) = read_jsonl(write({"messages": TALK}), plain_tokenizer)
    reference = plain_tokenizer.apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    assert row.inputs["input_ids"].tolist() == reference["input_ids"]
    assert row.labels is not None
    assert (row.labels != -100).long().tolist() == reference["assistant_masks"]
    assert [piece.strip() for piece in pieces(plain_tokenizer, row)] == [
        "the mat<|im_end|>",
        "is five<|im_end|>",
    ]


def test_start_token_comes_from_the_template_alone(tokenizer: Any, write: Write) -> None:
    # Catches: two start tokens, one from the template and one from the tokenizer.
    tokenizer.chat_template = "{{ bos_token }}" + PLAIN
    (row,) = read_jsonl(write({"messages": TALK}), tokenizer)
    assert row.inputs["input_ids"].tolist().count(tokenizer.bos_token_id) == 1


def test_a_span_that_ends_in_trimmed_white_space(plain_tokenizer: Any, write: Write) -> None:
    # Catches: everything after such a span supervised, the user's next turn included.
    plain_tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    plain_tokenizer.chat_template = INLINE
    talk = [TALK[1], {"role": "assistant", "content": "the mat "}, TALK[3]]
    (row,) = read_jsonl(write({"messages": talk}), plain_tokenizer)
    assert pieces(plain_tokenizer, row) == ["themat"]


def test_a_token_across_the_boundary_is_supervised(plain_tokenizer: Any, write: Write) -> None:
    # Catches: the first word of a turn lost because its token begins with the template's blank.
    plain_tokenizer.chat_template = INLINE
    (row,) = read_jsonl(write({"messages": TALK[1:3]}), plain_tokenizer)
    assert pieces(plain_tokenizer, row) == [" the mat"]


def test_conversations_are_cut_at_their_end(plain_tokenizer: Any, write: Write) -> None:
    # Catches: a cut that shifts labels against tokens, or leaves nothing supervised in silence.
    plain_tokenizer.chat_template = PLAIN
    path = write({"messages": TALK})
    (full,) = read_jsonl(path, plain_tokenizer)
    assert full.labels is not None
    first = int((full.labels != -100).nonzero()[0])
    for max_length in (first + 1, full.length - 1):
        (cut,) = read_jsonl(path, plain_tokenizer, max_length=max_length)
        assert cut.labels is not None
        assert cut.inputs["input_ids"].tolist() == full.inputs["input_ids"][:max_length].tolist()
        assert cut.labels.tolist() == full.labels[:max_length].tolist()
    with pytest.raises(DataError, match=f"rows.jsonl:1: no supervised .*max_length={first}"):
        read_jsonl(path, plain_tokenizer, max_length=first)


def test_no_template(plain_tokenizer: Any, write: Write) -> None:
    # Catches: the ValueError of transformers, which names neither file nor a way out.
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*no chat template.*'completion'"):
        read_jsonl(write("", {"messages": TALK}), plain_tokenizer)


def test_a_template_that_refuses(plain_tokenizer: Any, write: Write) -> None:
    # Catches: an error of jinja without file and line.
    plain_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}" + PLAIN
    )
    with pytest.raises(DataError, match="rows.jsonl:1: .*refuses .*no system role"):
        read_jsonl(write({"messages": TALK}), plain_tokenizer)
    assert len(read_jsonl(write({"messages": TALK[1:]}, name="n.jsonl"), plain_tokenizer)) == 1


@pytest.mark.parametrize(
    "template",
    [
        # Drops what was said before the last user's turn.
        "{% for m in messages[-2:] %}" + PLAIN.removeprefix("{% for m in messages %}"),
        # Ends the last turn otherwise than the same turn further up.
        PLAIN.replace(
            "<|im_end|>",
            "{% if loop.last and m['role'] == 'assistant' %}</s>{% else %}<|im_end|>{% endif %}",
        ),
        # Writes into the generation prompt what the turn itself does not have.
        PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"),
    ],
)
def test_templates_that_rewrite_the_past(template: str, plain_tokenizer: Any, write: Write) -> None:
    # Catches: prefix differences taken between texts that are no prefixes.
    plain_tokenizer.chat_template = template
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*\{% generation %\} tags"):
        read_jsonl(write({"messages": TALK}), plain_tokenizer)


def test_conversations_that_begin_with_the_assistant(plain_tokenizer: Any, write: Write) -> None:
    # Catches: the header supervised, or a crash of transformers on an empty conversation.
    path = write({"messages": TALK[2:]})
    plain_tokenizer.chat_template = PLAIN
    with pytest.raises(DataError, match="begins with the assistant"):
        read_jsonl(path, plain_tokenizer)
    plain_tokenizer.chat_template = TAGGED
    (row,) = read_jsonl(path, plain_tokenizer)
    assert len(pieces(plain_tokenizer, row)) == 2


def test_text_that_looks_like_our_marks(plain_tokenizer: Any, write: Write) -> None:
    # Catches: a user's text that opens or closes a span.
    plain_tokenizer.chat_template = TAGGED
    talk = [{"role": "user", "content": "a\ufdd0b\ufdd1"}, TALK[2]]
    with pytest.raises(DataError, match="could not be followed"):
        read_jsonl(write({"messages": talk}), plain_tokenizer)


def test_slow_tokenizers_are_refused(plain_tokenizer: Any, write: Write) -> None:
    # Catches: a NotImplementedError about offsets.
    class Slow:
        is_fast = False

        def __call__(self, *args: Any, **options: Any) -> Any:
            return plain_tokenizer(*args, **options)

    with pytest.raises(DataError, match="rows.jsonl:1: 'messages' needs a fast tokenizer"):
        read_jsonl(write({"messages": TALK}), Slow())

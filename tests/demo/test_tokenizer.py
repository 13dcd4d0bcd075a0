import json

import pytest
from transformers import AutoTokenizer

from fisherscope.data import read_jsonl
from fisherscope.demo.tokenizer import BEGIN_ID, END_ID, PAD_ID, VOCABULARY, train_tokenizer


def test_special_ids_are_what_the_model_is_told(tokenizer):
    # Catches a change of order in the trainer's special tokens.
    assert tokenizer.bos_token_id == BEGIN_ID
    assert tokenizer.eos_token_id == END_ID
    assert tokenizer.pad_token_id == PAD_ID


@pytest.mark.parametrize(
    "text", ["def f(x):\n    return x\n", "naïve 日本語 \t🙂", "  ", "a  b , c"]
)
def test_every_text_survives_the_round_trip(tokenizer, text):
    # Catches an alphabet without all bytes, added prefix spaces and cleaned-up spaces.
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == BEGIN_ID
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_same_texts_give_the_same_tokenizer(small):
    # Catches ties between merges broken by hash order.
    texts = small.documents["prose"]
    first, second = (train_tokenizer(texts, vocabulary=500) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_the_corpora_fill_the_vocabulary(corpora):
    # Catches a vocabulary that comes out smaller than the model is meant to have.
    assert len(train_tokenizer(corpora.documents["code"])) == VOCABULARY


def test_the_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    # Catches a class name in the saved files that AutoTokenizer maps to other rules.
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Why  does\n\tthis work?"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.model_max_length == tokenizer.model_max_length
    assert (loaded.pad_token_id, loaded.eos_token_id) == (PAD_ID, END_ID)


def test_conversations_and_questions_give_the_same_tokens(tokenizer, tmp_path):
    # Catches a chat template that drifts from the prompts that the instruct model learns.
    row = {"prompt": "Question: What is os.path?\nAnswer:", "completion": " A module."}
    messages = [
        {"role": "user", "content": "What is os.path?"},
        {"role": "assistant", "content": "A module."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps({'messages': messages})}\n")
    asked, chatted = read_jsonl(path, tokenizer)
    assert asked.inputs["input_ids"].tolist() == chatted.inputs["input_ids"].tolist()
    assert asked.labels.tolist() == chatted.labels.tolist()
    supervised = [label for label in chatted.labels.tolist() if label != -100]
    assert tokenizer.decode(supervised) == " A module.<eos>"


def test_generation_prompt_ends_where_the_answer_begins(tokenizer):
    # Catches a template that renders system turns or open questions wrongly.
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<bos>Be short.\nQuestion: Why?\nAnswer:"

"""Tiny random checkpoints with tokenizers trained on the spot, and JSONL tasks for them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

NOUNS = ["cat", "dog", "tree", "river", "stone", "house", "bird", "cloud", "road", "lamp"]
VERBS = ["sees", "finds", "likes", "holds", "meets", "hears"]
DIGITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
VOCABULARY = 64


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<unk>", "<eos>", "<mask>"]
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=special)
    words.train_from_iterator([" ".join(NOUNS + VERBS + DIGITS + ["plus", "is", "the"])], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        mask_token="<mask>",
    )


def llama(folder: Path, *, seed: int = 0, vocabulary: int = VOCABULARY) -> Path:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    return save(model, folder)


def llama_classifier(folder: Path, *, pad: int = 0) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=pad,
        num_labels=2,
    )
    return save(LlamaForSequenceClassification(config), folder)


def bert(folder: Path, *, masked: bool = False) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        id2label={0: "animal", 1: "number"},
        label2id={"animal": 0, "number": 1},
    )
    return save((BertForMaskedLM if masked else BertForSequenceClassification)(config), folder)


def save(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prose(path: Path, n: int = 8, seed: int = 0) -> Path:
    """Sentences of different lengths, all tokens supervised."""
    draw = random.Random(seed)
    rows = [
        {
            "text": " ".join(
                f"the {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}"
                for _ in range(draw.randint(1, 3))
            )
        }
        for _ in range(n)
    ]
    return jsonl(path, rows)


def sums(path: Path, n: int = 8, seed: int = 0) -> Path:
    """Prompts and completions; only the completion is supervised."""
    draw = random.Random(seed)
    rows = [
        {
            "prompt": f"{draw.choice(DIGITS)} plus {draw.choice(DIGITS)} is",
            "completion": " ".join(draw.choices(DIGITS, k=draw.randint(1, 3))),
        }
        for _ in range(n)
    ]
    return jsonl(path, rows)


def labelled(path: Path, n: int = 8, seed: int = 0) -> Path:
    """Texts with a label given by its name."""
    draw = random.Random(seed)
    rows = [
        {"text": " ".join(draw.choices(words, k=draw.randint(2, 5))), "label": label}
        for words, label in [(NOUNS, "animal"), (DIGITS, "number")] * (n // 2)
    ]
    return jsonl(path, rows)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that nothing changed."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

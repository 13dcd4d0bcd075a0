"""Fishers from explicit squared scores, and tiny random models of many families."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import transformers as tf
from torch import nn

from fisherscope.structures import DiagonalFisher, Fisher, GroupedFisher, Identity, Ledger


def fisher_of(
    squares: dict[str, np.ndarray],
    *,
    structure="diagonal",
    unit="example",
    tokens=None,
    halves=False,
    first_id=0,
    dtype=torch.float32,
    **identity,
) -> Fisher:
    """``squares[name]`` is [N, *shape]: squared scores of each example."""
    n = len(next(iter(squares.values())))
    tokens = np.ones(n, dtype=np.int64) if tokens is None else np.asarray(tokens)
    sums = {name: torch.as_tensor(np.asarray(s, np.float64).sum(0)) for name, s in squares.items()}
    if structure == "grouped":
        sums = {k: s.sum(1, keepdim=True) if s.ndim == 2 else s for k, s in sums.items()}
    fields = {
        "fisher_type": "empirical",
        "unit": unit,
        "structure": structure,
        "likelihood": "causal-lm",
        "draws": 1,
        "seed": 0,
        "parameters": {name: tuple(s.shape[1:]) for name, s in squares.items()},
        "model_fingerprint": "m",
        "data_fingerprint": "0",
        "dtype": "float32",
        "version": "0",
    }
    options = {"structure": structure, "unit": unit, "dtype": dtype, **identity}
    return {"diagonal": DiagonalFisher, "grouped": GroupedFisher}[structure](
        identity=Identity(**{**fields, **identity}),
        sums={name: s.to(dtype) for name, s in sums.items()},
        ledger=Ledger(
            ids=tuple(str(first_id + i) for i in range(n)),
            tensors=tuple(squares),
            squares=np.stack([s.reshape(n, -1).sum(1) for s in squares.values()], 1),
            tokens=tokens,
        ),
        coverage=dict.fromkeys(squares, "linear"),
        n_units=n if unit == "example" else int(tokens.sum()),
        halves=None
        if not halves
        else tuple(
            fisher_of(
                {name: s[start::2] for name, s in squares.items()},
                tokens=tokens[start::2],
                first_id=first_id + start * n,
                **options,
            )
            for start in (0, 1)
        ),
    )


def draw(shapes, n=12, *, seed=0, task=0, sigma=1.5):
    """Squared scores [N, *shape] around a heavy-tailed diagonal of one task."""
    truth = np.random.default_rng([seed, task])
    noise = np.random.default_rng([seed, task, 1])
    return {
        name: np.exp(truth.normal(0, sigma, shape)) * noise.exponential(size=(n, *shape))
        for name, shape in shapes.items()
    }


def like(model: nn.Module, n=6, *, seed=0) -> dict[str, np.ndarray]:
    """Squared scores in the shapes of a model's parameters."""
    return draw({name: tuple(p.shape) for name, p in model.named_parameters()}, n, seed=seed)


_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 19, "num_attention_heads": 4}
_BERT = {**_SMALL, "intermediate_size": 24, "max_position_embeddings": 32}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {**_BERT, **_IDS}
_FALCON = {**_SMALL, **_IDS, "alibi": False}

MODELS = {
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=19, n_positions=32, **_IDS)
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA, num_key_value_heads=2)),
    # A head size that is not hidden size / heads.
    "qwen3": lambda: tf.Qwen3ForCausalLM(
        tf.Qwen3Config(**_LLAMA, num_key_value_heads=2, head_dim=6)
    ),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_LLAMA, num_key_value_heads=1)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**_LLAMA, num_key_value_heads=2)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_LLAMA)),
    "bloom": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(hidden_size=16, n_layer=2, n_head=4, vocab_size=19, **_IDS)
    ),
    "falcon_mha": lambda: tf.FalconForCausalLM(
        tf.FalconConfig(**_FALCON, multi_query=False, new_decoder_architecture=False)
    ),
    "falcon_mqa": lambda: tf.FalconForCausalLM(tf.FalconConfig(**_FALCON, multi_query=True)),
    "falcon_gqa": lambda: tf.FalconForCausalLM(
        tf.FalconConfig(**_FALCON, num_kv_heads=2, new_decoder_architecture=True)
    ),
    "gpt_bigcode_mqa": lambda: tf.GPTBigCodeForCausalLM(
        tf.GPTBigCodeConfig(n_embd=16, n_layer=2, n_head=4, vocab_size=19, n_positions=32, **_IDS)
    ),
    "gpt_bigcode_mha": lambda: tf.GPTBigCodeForCausalLM(
        tf.GPTBigCodeConfig(
            n_embd=16, n_layer=2, n_head=4, vocab_size=19, n_positions=32, multi_query=False, **_IDS
        )
    ),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(**_SMALL, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32)
    ),
    "bert": lambda: tf.BertForMaskedLM(
        tf.BertConfig(**_BERT, tie_word_embeddings=False, pad_token_id=0)
    ),
    "bert_classifier": lambda: tf.BertForSequenceClassification(tf.BertConfig(**_BERT)),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=24, vocab_size=19)
    ),
    "albert": lambda: tf.AlbertForMaskedLM(tf.AlbertConfig(**_BERT, embedding_size=8)),
    "modernbert": lambda: tf.ModernBertForMaskedLM(
        tf.ModernBertConfig(
            **_BERT, cls_token_id=1, sep_token_id=2, attn_implementation="eager", **_IDS
        )
    ),
    "vit": lambda: tf.ViTForImageClassification(
        tf.ViTConfig(**{**_BERT, "image_size": 8, "patch_size": 4})
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(d_model=16, d_kv=6, num_layers=2, num_heads=4, d_ff=24, vocab_size=19)
    ),
    "bart": lambda: tf.BartForConditionalGeneration(
        tf.BartConfig(
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            vocab_size=19,
            max_position_embeddings=32,
        )
    ),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(
            **_LLAMA,
            num_key_value_heads=2,
            head_dim=4,
            moe_intermediate_size=8,
            num_experts=4,
            num_experts_per_tok=2,
        )
    ),
    # Queries come with a gate, head by head.
    "qwen3_next": lambda: tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(
            **_LLAMA,
            num_key_value_heads=2,
            head_dim=8,
            layer_types=["full_attention"] * 2,
            mlp_only_layers=[0, 1],
        )
    ),
    "resnet": lambda: tf.ResNetForImageClassification(
        tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic")
    ),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=19)
    ),
}


@cache
def model(family: str) -> nn.Module:
    """One instance per process; tests must not change it."""
    torch.manual_seed(0)
    return MODELS[family]().eval()


def inputs(family: str) -> dict[str, torch.Tensor]:
    if family in {"vit", "resnet"}:
        g = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=g)}
    ids = torch.tensor([[3, 5, 7, 11, 13, 4]])
    if family in {"t5", "bart"}:
        return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}
    return {"input_ids": ids}

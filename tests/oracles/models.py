"""Tiny random models with data: the list of architectures that every oracle runs over.

Weights are drawn larger than usual (standard deviation 0.2, vectors jittered), so that no
tensor's score is degenerate and the nonlinearities matter.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from oracles import nets, rows

VOCABULARY = 40


@dataclass(frozen=True, eq=False)
class Case:
    """A model and its data.

    Attributes:
        model: In fp32, in eval mode, frozen nowhere.
        rows: Unpadded data.
        likelihood: What ``"auto"`` should find.
        zero: Globs of tensors whose score vanishes in theory (a key bias shifts all
            attention logits of a query alike), so that only rounding is left.
        whole: Globs of parameters that no layer of their own delivers: in the position
            unit each example counts as one position of theirs.
        rowwise: Globs of modules that treat every row of a flat batch by itself, in a way of
            their own: routers and stacks of experts.
    """

    model: nn.Module
    rows: list[rows.Row]
    likelihood: str
    zero: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    rowwise: tuple[str, ...] = ()

    def vanishes(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.zero)

    def is_whole(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.whole)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every vector, and every matrix that is all zeros or all ones, off its default."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim < 2 or float(p.std()) == 0:
                p.add_(0.3 * torch.randn(p.shape, generator=g))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=g))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=g))
    return model.eval()


_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "max_position_embeddings": 32,
}
_GQA = {"intermediate_size": 24, "num_key_value_heads": 2}


def gpt2(**options: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(**{
            "vocab_size": VOCABULARY,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 32,
            "initializer_range": 0.2,
            **options,
        })
    )


def llama(**options: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**_SIZE, **_GQA, **options}))


def llama_classifier(pad: int | None) -> nn.Module:
    # Its pooling looks for the last id that is not pad_token_id; without one it takes no batch.
    from transformers import LlamaConfig, LlamaForSequenceClassification

    options = {**_SIZE, **_GQA, "num_hidden_layers": 1, "num_labels": 3, "pad_token_id": pad}
    return LlamaForSequenceClassification(LlamaConfig(**options))


def qwen2(**options: Any) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_SIZE, **_GQA, **options))


def _qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_SIZE, **_GQA, head_dim=6))


def _gemma2() -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(
        Gemma2Config(**_SIZE, **_GQA, head_dim=4, final_logit_softcapping=2.0, sliding_window=4)
    )


def _gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZE, intermediate_size=24))


def _opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=24,
            max_position_embeddings=32,
            word_embed_proj_dim=12,
            init_std=0.2,
            pad_token_id=1,
        )
    )


def mixtral(**options: Any) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    choice = {"num_local_experts": 3, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**{**_SIZE, **_GQA, **choice, **options}))


def _qwen2_moe() -> nn.Module:
    # The first layer is dense, the second has a gated expert that every position shares.
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **_SIZE,
            **_GQA,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=20,
            num_experts=5,
            num_experts_per_tok=2,
            mlp_only_layers=[0],
        )
    )


def _gpt_oss() -> nn.Module:
    # Experts stored as [in, out] with biases, gates interleaved; a router with a bias.
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(
        GptOssConfig(
            **_SIZE,
            intermediate_size=12,
            num_key_value_heads=2,
            head_dim=4,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=4,
            attn_implementation="eager",
        )
    )


def rwkv() -> nn.Module:
    """Recurrent over positions; with a cache it overwrites its state, which has no gradient."""
    from transformers import RwkvConfig, RwkvForCausalLM

    model = RwkvForCausalLM(
        RwkvConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            attention_hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            context_length=32,
            use_cache=False,
        )
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.4 if p.ndim == 2 else 0.2).add_(float("ln" in name and "w" in name))
    return model


def bert(masked: bool, **options: Any) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(**{**_SIZE, "intermediate_size": 24, "num_labels": 3, **options})
    return (BertForMaskedLM if masked else BertForSequenceClassification)(config)


def _albert(masked: bool) -> nn.Module:
    from transformers import AlbertConfig, AlbertForMaskedLM, AlbertForSequenceClassification

    # One layer used three times; its embedding table has padding_idx 0, an id of the data.
    options = {**_SIZE, "num_hidden_layers": 3}
    config = AlbertConfig(**options, embedding_size=8, intermediate_size=24, num_labels=3)
    return (AlbertForMaskedLM if masked else AlbertForSequenceClassification)(config)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
            num_labels=3,
            initializer_range=0.2,
        )
    )


def lora(base: nn.Module, **options: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    options = {"target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    config = LoraConfig(r=3, lora_alpha=5, lora_dropout=0.1, **options)
    return get_peft_model(base, config)


def dora(base: nn.Module) -> nn.Module:
    """Its magnitudes divide by a norm that it learns by sending a unit matrix through LoRA."""
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn", "mlp.c_proj"]
    return get_peft_model(
        base, LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_dora=True)
    )


def ia3(base: nn.Module) -> nn.Module:
    """Scales keys and values behind their layers, and the inputs of the second MLP layer."""
    from peft import IA3Config, get_peft_model

    config = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    return get_peft_model(base, config)


def _routed() -> list[rows.Row]:
    """Positions of the shortest ids go to expert 0 only; later rows use the others unevenly."""
    data = rows.points(9, (3, 4), classes=3)
    for row in data:
        row.inputs["0"][:, 0].clamp_(max=0.9)
    for row, position, value in ((3, 0, 1.5), (3, 1, 1.5), (5, 0, 2.5), (5, 2, 2.5), (8, 1, 1.5)):
        data[row].inputs["0"][position, 0] = value
    return data


def _images(**options: Any) -> list[rows.Row]:
    return rows.points(5, (3, 8, 8), classes=3, **options)


_CASES: dict[str, Callable[[], Case]] = {
    "gpt2": lambda: Case(gpt2(), rows.text(), "causal-lm"),
    "llama-tied": lambda: Case(llama(tie_word_embeddings=True), rows.text(), "causal-lm"),
    "llama-untied": lambda: Case(llama(), rows.text(), "causal-lm"),
    "qwen2-tied": lambda: Case(qwen2(tie_word_embeddings=True), rows.text(), "causal-lm"),
    "qwen2-untied": lambda: Case(qwen2(), rows.text(), "causal-lm"),
    "qwen3": lambda: Case(_qwen3(), rows.text(), "causal-lm"),
    "gemma2": lambda: Case(_gemma2(), rows.text(), "causal-lm"),
    "gpt-neox": lambda: Case(_gpt_neox(), rows.text(), "causal-lm"),
    "opt": lambda: Case(_opt(), rows.text(), "causal-lm", zero=("*.k_proj.bias",)),
    "mixtral": lambda: Case(
        mixtral(), rows.text(), "causal-lm", rowwise=("*.mlp.gate", "*.mlp.experts")
    ),
    "qwen2-moe": lambda: Case(
        _qwen2_moe(), rows.text(), "causal-lm", rowwise=("*.mlp.gate", "*.mlp.experts")
    ),
    "gpt-oss": lambda: Case(
        _gpt_oss(),
        rows.text(),
        "causal-lm",
        whole=("*.sinks",),
        rowwise=("*.mlp.router", "*.mlp.experts"),
    ),
    "rwkv": lambda: Case(rwkv(), rows.text(), "causal-lm", whole=("*.time_*",)),
    "bert-mlm": lambda: Case(bert(True), rows.cloze(), "masked-lm", zero=("*.key.bias",)),
    "albert-mlm": lambda: Case(_albert(True), rows.cloze(), "masked-lm", zero=("*.key.bias",)),
    "bert": lambda: Case(bert(False), rows.labelled_text(), "classification", zero=("*.key.bias",)),
    "albert": lambda: Case(
        _albert(False), rows.labelled_text(), "classification", zero=("*.key.bias",)
    ),
    "llama-classifier": lambda: Case(
        llama_classifier(pad=39), rows.labelled_text(), "classification"
    ),
    "llama-classifier-unpadded": lambda: Case(
        llama_classifier(pad=None), rows.labelled_text(), "classification"
    ),
    "lora": lambda: Case(lora(llama(tie_word_embeddings=True)), rows.text(), "causal-lm"),
    "dora": lambda: Case(
        dora(gpt2()),
        rows.text(),
        "causal-lm",
        # DoRA takes the bias off what the base layer returned.
        whole=("*.lora_magnitude_vector.*", "*.base_layer.bias"),
    ),
    "ia3": lambda: Case(ia3(llama()), rows.text(), "causal-lm", whole=("*.ia3_l.*",)),
    "vit": lambda: Case(
        _vit(),
        _images(name="pixel_values"),
        "classification",
        zero=("*.key.bias", "*.k_proj.bias"),
        whole=("*_token", "*position_embeddings"),
    ),
    "resnet": lambda: Case(nets.ResNet(), _images(), "classification"),
    "signals": lambda: Case(
        nets.Signals(), rows.points(5, (2, 9), classes=3), "classification", zero=("up.bias",)
    ),
    "planes": lambda: Case(nets.Planes(), rows.points(5, (3, 5, 4), classes=3), "classification"),
    "volumes": lambda: Case(
        nets.Volumes(), rows.points(5, (2, 4, 5, 6), classes=3), "classification"
    ),
    "lstm": lambda: Case(
        nets.Recurrent(nn.LSTM),
        rows.points(5, (6, 4), classes=3),
        "classification",
        whole=("cells.*",),
    ),
    "gru": lambda: Case(
        nets.Recurrent(nn.GRU),
        rows.points(5, (6, 4), classes=3),
        "classification",
        whole=("cells.*",),
    ),
    "weight-norm": lambda: Case(
        nets.WeightNorm(),
        rows.points(5, (2, 7), classes=3),
        "classification",
        whole=("*.parametrizations.*",),
    ),
    "thin": lambda: Case(nets.Thin(), rows.ids(5, 6, 9, classes=3), "classification"),
    "mlp": lambda: Case(nets.MLP(4), rows.points(6, (5,), classes=4), "classification"),
    "mlp-regression": lambda: Case(nets.MLP(2), rows.points(6, (5,), targets=2), "regression"),
    "multihead": lambda: Case(
        nets.Attention(),
        rows.points(5, (6, 4), classes=3),
        "classification",
        whole=("attention.*",),
    ),
    "functional": lambda: Case(
        nets.Functional(),
        rows.points(6, (5,), classes=3),
        "classification",
        whole=("tied.weight",),
    ),
    "reused": lambda: Case(nets.Reused(), rows.points(6, (5,), classes=3), "classification"),
    "layerscale": lambda: Case(
        nets.LayerScale(),
        rows.points(6, (5,), classes=3),
        "classification",
        whole=("*.scale", "temperature"),
    ),
    "experts": lambda: Case(nets.Experts(), _routed(), "classification", whole=("experts.*",)),
    "running-norm": lambda: Case(nets.Running(), rows.points(6, (5,), classes=3), "classification"),
    "mixed": lambda: Case(nets.Mixed(), rows.points(6, (5,), classes=3), "classification"),
    "unused": lambda: Case(
        nets.Unused(),
        rows.points(6, (5,), classes=3),
        "classification",
        zero=("never",),
        whole=("never",),
    ),
}
NAMES = tuple(_CASES)

# Language models of seven words and a few hundred parameters, for whole matrices and for
# exact expectations over all labels of all tokens.
_TINY: dict[str, Callable[[], Case]] = {
    "tiny-gpt2": lambda: _tiny(_tiny_gpt2()),
    "tiny-lora": lambda: _tiny(_tiny_lora()),
    "tiny-llama": lambda: _tiny(_tiny_llama()),
    "tiny-llama-tied": lambda: _tiny(_tiny_llama(tie_word_embeddings=True)),
    "tiny-bert-mlm": lambda: Case(
        bert(True, **_FEW, intermediate_size=6, max_position_embeddings=8, type_vocab_size=1),
        rows.cloze((4, 2, 3), vocabulary=7),
        "masked-lm",
        zero=("*.key.bias",),
    ),
}
TINY = tuple(_TINY)
_FEW: dict[str, Any] = {
    "vocab_size": 7,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def _tiny(model: nn.Module) -> Case:
    return Case(model, rows.text((4, 5, 3), vocabulary=7, seed=2), "causal-lm")


def _tiny_gpt2() -> nn.Module:
    sizes = {"vocab_size": 7, "n_embd": 4, "n_layer": 1, "n_positions": 8}
    return gpt2(**sizes, bos_token_id=None, eos_token_id=None)


def _tiny_lora() -> nn.Module:
    return lora(_tiny_gpt2(), target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)


def _tiny_llama(**options: Any) -> nn.Module:
    return llama(**_FEW, intermediate_size=6, num_key_value_heads=1, **options)


TEXT = tuple(
    name
    for name in NAMES
    if name
    in {
        *("gpt2", "llama-tied", "llama-untied", "qwen2-tied", "qwen2-untied", "qwen3", "gemma2"),
        *("gpt-neox", "opt", "mixtral", "qwen2-moe", "gpt-oss", "bert-mlm", "albert-mlm", "bert"),
        *("albert", "llama-classifier", "llama-classifier-unpadded", "lora", "dora", "ia3"),
    }
)


@cache
def case(name: str) -> Case:
    """A case, built once; estimation leaves the model as it is (which is tested too)."""
    state = torch.get_rng_state()
    torch.manual_seed(sum(map(ord, name)))
    try:
        found = (_CASES | _TINY)[name]()
    finally:
        torch.set_rng_state(state)
    randomise(found.model)
    return found


def fresh(name: str) -> Case:
    """A case of one's own, to be changed freely."""
    return case.__wrapped__(name)

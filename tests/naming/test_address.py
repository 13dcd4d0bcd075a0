from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analysis.builders import MODELS, model
from fisherscope.naming import address, addresses, stacks

NAMES = {
    # Llama, Qwen
    "model.layers.3.self_attn.q_proj.weight": (3, "q_proj"),
    "model.layers.10.mlp.down_proj.weight": (10, "down_proj"),
    "model.layers.3.self_attn.q_norm.weight": (3, "norm"),
    "model.layers.3.post_attention_layernorm.weight": (3, "norm"),
    "model.embed_tokens.weight": (None, "embed"),
    "model.norm.weight": (None, "norm"),
    "lm_head.weight": (None, "head"),
    "model.layers.3.mlp.experts.5.gate_proj.weight": (3, "experts.gate_proj"),
    "model.layers.3.mlp.experts.gate_up_proj": (3, "experts.gate_up_proj"),
    "model.layers.3.mlp.gate.weight": (3, "gate"),
    "model.layers.3.mlp.shared_expert.up_proj.weight": (3, "shared_expert.up_proj"),
    # GPT-2
    "transformer.h.3.attn.c_attn.bias": (3, "c_attn"),
    "transformer.h.3.attn.c_proj.weight": (3, "attn.c_proj"),
    "transformer.h.3.mlp.c_proj.weight": (3, "mlp.c_proj"),
    "h.3.attn.c_attn.weight": (3, "c_attn"),
    "transformer.h.3.ln_2.bias": (3, "norm"),
    "transformer.ln_f.weight": (None, "norm"),
    "transformer.wte.weight": (None, "embed"),
    "transformer.wpe.weight": (None, "embed"),
    # GPT-NeoX; its output head is called embed_out in older checkpoints
    "gpt_neox.layers.3.attention.query_key_value.weight": (3, "query_key_value"),
    "gpt_neox.layers.3.attention.dense.weight": (3, "attention.dense"),
    "gpt_neox.layers.3.mlp.dense_4h_to_h.weight": (3, "dense_4h_to_h"),
    "gpt_neox.embed_in.weight": (None, "embed"),
    "embed_out.weight": (None, "head"),
    # OPT
    "model.decoder.layers.3.self_attn.out_proj.weight": (3, "out_proj"),
    "model.decoder.layers.3.self_attn_layer_norm.weight": (3, "norm"),
    "model.decoder.layers.3.fc1.weight": (3, "fc1"),
    "model.decoder.embed_positions.weight": (None, "embed"),
    # BERT
    "bert.encoder.layer.3.attention.self.query.weight": (3, "query"),
    "bert.encoder.layer.3.attention.output.dense.weight": (3, "attention.output.dense"),
    "bert.encoder.layer.3.output.dense.weight": (3, "output.dense"),
    "bert.encoder.layer.3.output.LayerNorm.weight": (3, "norm"),
    "bert.embeddings.LayerNorm.weight": (None, "norm"),
    "bert.embeddings.token_type_embeddings.weight": (None, "embed"),
    "bert.pooler.dense.weight": (None, "pooler"),
    "cls.predictions.transform.dense.weight": (None, "head"),
    "cls.predictions.bias": (None, "head"),
    "classifier.weight": (None, "head"),
    # ALBERT
    "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight": (0, "query"),
    "albert.encoder.albert_layer_groups.1.albert_layers.2.ffn.weight": (1, "2.ffn"),
    "albert.encoder.embedding_hidden_mapping_in.weight": (None, "embed"),
    # ViT, old and new names
    "vit.encoder.layer.3.attention.attention.key.weight": (3, "key"),
    "vit.layers.3.attention.o_proj.weight": (3, "o_proj"),
    "vit.embeddings.cls_token": (None, "embed"),
    "vit.embeddings.patch_embeddings.projection.weight": (None, "embed"),
    # T5
    "encoder.block.3.layer.0.SelfAttention.q.weight": (3, "SelfAttention.q"),
    "decoder.block.3.layer.1.EncDecAttention.q.weight": (3, "EncDecAttention.q"),
    "decoder.block.3.layer.2.DenseReluDense.wi_0.weight": (3, "wi_0"),
    "decoder.block.3.layer.2.layer_norm.weight": (3, "norm"),
    "shared.weight": (None, "embed"),
    # ResNet, torchvision and Hugging Face
    "layer2.1.conv1.weight": (2, "1.conv1"),
    "layer2.0.downsample.0.weight": (2, "0.downsample.0"),
    "layer2.1.bn2.weight": (2, "norm"),
    "conv1.weight": (None, "conv1"),
    "fc.weight": (None, "head"),
    "resnet.encoder.stages.2.layers.1.layer.0.convolution.weight": (2, "1.0.convolution"),
    "classifier.1.weight": (None, "head"),
    # Adapters and small networks
    "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight": (3, "q_proj.lora_A"),
    "base_model.model.model.layers.3.self_attn.q_proj.lora_B.math.weight": (
        3,
        "q_proj.lora_B.math",
    ),
    "base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight": (3, "q_proj"),
    "layers.3.weight": (3, "layers"),
    "layers.3": (None, "layers.3"),
    "net.0.weight": (None, "net.0"),
    "0.bias": (None, "0"),
    "weight": (None, "weight"),
    "theta": (None, "theta"),
    "body.4.mix.weight": (4, "mix"),
}


@pytest.mark.parametrize("name", NAMES)
def test_addresses_of_known_names(name):
    # Would catch: layers.1 taken for layers.10, the two c_proj of GPT-2 merged, the output
    # head embed_out taken for an embedding, BERT's two output.dense merged.
    assert address(name) == NAMES[name]


@pytest.mark.parametrize("family", MODELS)
def test_names_agree_with_what_the_modules_are(family):
    # The oracle is the model: its embeddings, norms and output head, found by behaviour.
    # Would catch: a family whose norm, embedding or head goes by an unlisted name.
    m = model(family)
    kinds = {}
    for path, module in m.named_modules():
        label = type(module).__name__.lower()
        if "norm" in label and not list(module.children()):
            kinds[path] = "norm"
        elif isinstance(module, nn.Embedding) and "relative" not in path:
            kinds[path] = "embed"
    for path, module in m.named_modules():
        if module is m.get_output_embeddings():
            kinds[path] = "head"
    shown = {name: address(name) for name, _ in m.named_parameters()}
    for name, (layer, module) in shown.items():
        kind = kinds.get(name.rpartition(".")[0])
        assert kind is None or module == kind, name
        if kind in {"embed", "head"}:
            assert layer is None
    assert {layer for layer, _ in shown.values()} - {None} == (
        {0} if family == "albert" else {0, 1}
    )


@pytest.mark.parametrize("family", MODELS)
def test_only_one_module_has_an_address(family):
    # Would catch: two different weights merged into one cell of the heat map, among them layer
    # 0 of an encoder and of a decoder.
    owners = defaultdict(set)
    for name, (layer, module) in addresses(n for n, _ in model(family).named_parameters()).items():
        if module.rpartition(".")[2] not in {"norm", "embed", "head"}:
            owners[layer, module].add(name.removesuffix(".weight").removesuffix(".bias"))
    assert {place: names for place, names in owners.items() if len(names) > 1} == {}


def test_stacks_are_told_apart_only_where_there_are_several():
    # Would catch: "decoder." before every module of OPT or BERT, which have one stack.
    t5 = addresses(n for n, _ in model("t5").named_parameters())
    assert t5["decoder.block.1.layer.0.SelfAttention.q.weight"] == (1, "decoder.SelfAttention.q")
    assert t5["encoder.final_layer_norm.weight"] == (None, "encoder.norm")
    assert t5["shared.weight"] == (None, "embed")
    for family in ("opt", "bert", "llama", "resnet"):
        assert set(stacks(n for n, _ in model(family).named_parameters()).values()) == {""}
    vision = "model.vision_tower.encoder.layers.0.fc1.weight"
    language = "model.language_model.layers.0.fc1.weight"
    assert addresses([vision, language]) == {
        vision: (0, "vision_tower.fc1"),
        language: (0, "language_model.fc1"),
    }


def test_modules_of_one_name_keep_their_parents():
    # Would catch: an unknown family's two "mix" of one layer added up in one row.
    names = ["layers.0.time.mix.weight", "layers.0.channel.mix.weight", "layers.0.channel.r.weight"]
    assert list(addresses(names).values()) == [
        (0, "time.mix"),
        (0, "channel.mix"),
        (0, "channel.r"),
    ]


def test_stacks_that_differ_late_stay_apart():
    # Would catch: two stacks under one parent given the same word.
    names = [f"m.{s}.layers.0.fc1.weight" for s in ("a.enc", "a.dec", "b.enc")]
    assert len(set(addresses(names).values())) == 3


@settings(deadline=None)
@given(
    st.lists(
        st.text(alphabet="abcnormlayershx0123._", min_size=1).filter(lambda s: all(s.split("."))),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_any_name_has_an_address(names):
    # Would catch: an index error on an odd name (raw parameters, empty paths, bare numbers).
    for name, (layer, module) in addresses(names).items():
        assert layer is None or layer >= 0
        assert module, name

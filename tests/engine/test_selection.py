"""Which parameters a selection takes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.engine.selection import select
from oracles import models


class Stack(nn.Module):
    """So many layers of two parameters each, with one parameter before and one behind."""

    def __init__(self, count: int):
        super().__init__()
        self.embed = nn.Linear(2, 2, bias=False)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"mlp": nn.Linear(2, 3, bias=False), "norm": nn.LayerNorm(2, bias=False)})
            for _ in range(count)
        )
        self.head = nn.Linear(2, 2, bias=False)


class Two(nn.Module):
    """An encoder and a decoder of different depth."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Stack(4), Stack(2)


def within(stack: str, *numbers: int) -> set[str]:
    return {f"{stack}layers.{n}.{part}.weight" for n in numbers for part in ("mlp", "norm")}


# Would catch: an end that is included, numbers compared as text ("10" < "3"), embeddings counted.
@pytest.mark.parametrize(
    ("selection", "numbers"),
    [
        (fs.layers(3, 7), (3, 4, 5, 6)),
        ("layers[3:7]", (3, 4, 5, 6)),
        (fs.layers(9), (9, 10, 11)),
        (fs.layers(-2), (10, 11)),
        ("layers[-1]", (11,)),
        ("layers[10]", (10,)),
        (fs.layers(stop=-10), (0, 1)),
        (fs.layers(10, 99), (10, 11)),
        ([fs.layers(0, 1), fs.layers(-1)], (0, 11)),
    ],
)
def test_layer_ranges(selection, numbers):
    assert set(select(Stack(12), selection)) == within("", *numbers)


# Would catch: negative numbers counted from the end of the deeper stack for both.
def test_each_stack_is_counted_from_its_own_end():
    expected = within("encoder.", 3) | within("decoder.", 1)
    assert set(select(Two(), fs.layers(-1))) == expected
    assert set(select(Two(), fs.layers(2))) == within("encoder.", 2, 3)
    with pytest.raises(fs.ParameterError, match="encoder 0 to 3, decoder 0 to 1"):
        select(Two(), fs.layers(4, 9))


# Would catch: fullmatch or match where people expect search, flags of the pattern ignored.
@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (re.compile(r"[02]\.mlp"), {"layers.0.mlp.weight", "layers.2.mlp.weight"}),
        (r"re:[02]\.mlp", {"layers.0.mlp.weight", "layers.2.mlp.weight"}),
        (re.compile("^HEAD", re.IGNORECASE), {"head.weight"}),
        ("re:(?i)^HEAD", {"head.weight"}),
    ],
)
def test_expressions_are_searched(selection, taken):
    assert set(select(Stack(3), selection)) == taken


# Would catch: a predicate that gets only the name, or only parameters that require grad.
def test_predicates_see_name_and_parameter():
    model = Stack(2).requires_grad_(False)
    seen = {}

    def tall(name, parameter):
        seen[name] = parameter
        return parameter.shape == (3, 2)

    assert set(select(model, tall)) == {"layers.0.mlp.weight", "layers.1.mlp.weight"}
    assert all(seen[name] is parameter for name, parameter in model.named_parameters())


# Would catch: kinds that exclude each other, an order that follows the selection.
def test_kinds_unite_in_the_order_of_the_model():
    selection = [
        lambda name, _: name == "head.weight",
        fs.layers(1, 2),
        re.compile("0.mlp"),
        "emb*",
    ]
    taken = within("", 1) | {"layers.0.mlp.weight", "embed.weight", "head.weight"}
    found = list(select(Stack(3), selection))
    assert set(found) == taken
    assert found == [name for name, _ in Stack(3).named_parameters() if name in taken]


# Would catch: a tied tensor that only its first name selects, or that is listed twice.
@pytest.mark.parametrize(
    "selection",
    [
        "lm_head.*",
        re.compile("^lm_head"),
        lambda name, _: name.startswith("lm_head"),
        [re.compile("lm_head"), "model.embed*"],
    ],
)
def test_any_name_of_a_tied_tensor_selects_it(selection):
    found = select(models.case("llama-tied").model, selection)
    assert list(found) == ["model.embed_tokens.weight"]


# Would catch: a module shared by two layers that only its first number selects.
def test_any_number_of_a_shared_layer_selects_it():
    model = Stack(3)
    model.layers[2] = model.layers[0]
    assert set(select(model, fs.layers(-1))) == within("", 0)


# Would catch: a part of the selection that silently takes nothing, hidden by the other parts.
@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ("layers.*.mpl.*", r"'layers\.\*\.mpl\.\*'; names look like .*mlp.*glob"),
        (re.compile("mpl"), "'re:mpl'; names look like .*weight"),
        ("re:mpl", "'re:mpl'; names look like"),
        (fs.layers(3), r"'layers\[3:\]'; the layers of this model are 0 to 2"),
        ("layers[-9:-5]", r"'layers\[-9:-5\]'; the layers of this model are 0 to 2"),
        (lambda name, parameter: False, "the predicate .*lambda.*; names look like embed.weight"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_what_takes_nothing_is_named(selection, said, alone):
    with pytest.raises(fs.ParameterError, match="no parameter matches " + said):
        select(Stack(3), selection if alone else ["*", selection])


def test_a_model_without_layers_has_no_range():
    with pytest.raises(fs.ParameterError, match=r"no name .* layer's number: weight, bias"):
        select(nn.Linear(2, 2), fs.layers(0, 1))


# Would catch: quantised weights asked for and left out without a word, or taken by None.
@pytest.mark.parametrize(
    "selection",
    ["*", fs.layers(0), re.compile("layers"), lambda *_: True],
    ids=["glob", "layers", "regex", "predicate"],
)
def test_integers_have_no_score(selection):
    model = Stack(1)
    codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    model.layers[0]["mlp"].register_parameter("codes", codes)
    assert "layers.0.mlp.codes" not in select(model)
    with pytest.raises(fs.CoverageError, match=r"layers\.0\.mlp\.codes hold integers"):
        select(model, selection)
    floats = select(model, lambda name, parameter: parameter.is_floating_point())
    assert list(floats) == list(select(model))


# Would catch: a selection that the estimate reads otherwise than select() does.
def test_an_estimate_takes_every_kind():
    case = models.case("gpt2")
    data = [fs.Example(row.id, row.inputs, row.labels) for row in case.rows[:2]]
    selection = [fs.layers(1, 2), re.compile("ln_f"), lambda name, p: name.endswith("wpe.weight")]
    fisher = fs.estimate(case.model, data, parameters=selection, progress=False)
    assert list(fisher.sums) == list(select(case.model, selection))
    assert {n for n in fisher.sums if ".h." in n} == {
        n for n, _ in case.model.named_parameters() if ".h.1." in n
    }
    again = fs.estimate(
        case.model, data, parameters=["layers[1]", "re:ln_f", "*wpe.weight"], progress=False
    )
    assert again.identity == fisher.identity

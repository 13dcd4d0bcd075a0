"""Where one Kronecker product is the whole block: KFAC and EKFAC against ``structure="block"``.

The block of a weight is the mean of ``g gᵀ ⊗ a aᵀ``, KFAC's the product of both means. They are
equal where one of the two does not vary: a new such case is one line of ``EXACT``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fisherscope as fs
from oracles import brute, models, rows


class Chain(nn.Module):
    """A deep linear network: the gradients of an output do not depend on the input."""

    def __init__(self, pool: bool = False):
        super().__init__()
        self.pool = pool
        self.first, self.middle = nn.Linear(4, 5), nn.Linear(5, 3, bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.middle(self.first(x)))
        return y.mean(1) if self.pool else y.flatten(1)


class Split(nn.Module):
    """One weight under two names, each on its own half of the input."""

    def __init__(self, bias: bool):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2, bias=bias), nn.Linear(3, 2, bias=bias)
        self.right.weight = self.left.weight
        if bias:
            self.right.bias = self.left.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x[:, :3]), self.right(x[:, 3:])], 1)


def text(*sequences: tuple[int, ...], supervised: int = 1) -> list[rows.Row]:
    """Token sequences with labels at the last so many places."""
    made = []
    for number, ids in enumerate(sequences):
        labels = torch.tensor(ids)
        labels[: len(ids) - supervised] = -100
        made.append(rows.Row(f"row-{number}", {"input_ids": torch.tensor(ids)}, labels))
    return made


def classes(data: list[rows.Row], *labels: int) -> list[rows.Row]:
    return [
        rows.Row(f"row-{n}", data[0].inputs, torch.tensor(label)) for n, label in enumerate(labels)
    ]


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return models.randomise(build())


ALL_LABELS: dict[str, dict[str, Any]] = {
    "empirical": {},
    "mc": {"fisher_type": "mc", "draws": 3},
    "signs": {"fisher_type": "mc", "draws": 2, "sampling": "signs"},
    "type-2": {"fisher_type": "type-2"},
}


@dataclass(frozen=True)
class Exact:
    model: Callable[[], nn.Module]
    data: list[rows.Row]
    options: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(ALL_LABELS))
    kfac: str = ""
    likelihood: str = "auto"


TYPE_2 = {"type-2": ALL_LABELS["type-2"]}
POINT = rows.points(1, (5,), classes=4)

EXACT = {
    # Squared error: the gradient of one output at a layer is a row of what follows, whatever
    # the input. Only type-2 has it so: data labels and draws weigh it with their residuals.
    "deep linear": Exact(Chain, rows.points(7, (4,), targets=2), TYPE_2),
    "deep linear, bias apart": Exact(
        Chain, rows.points(7, (4,), targets=2), TYPE_2, kfac="(bias=separate)"
    ),
    # Several positions with an output each: every one is a datum of its own to its layer.
    "deep linear, expand": Exact(Chain, rows.points(4, (3, 4), targets=6), TYPE_2),
    "deep linear, reduce": Exact(
        lambda: Chain(pool=True), rows.points(4, (3, 4), targets=2), TYPE_2, kfac="(sharing=reduce)"
    ),
    "deep linear, a shared weight": Exact(
        lambda: Split(bias=False), rows.points(4, (6,), targets=4), TYPE_2
    ),
    "deep linear, a shared layer": Exact(
        lambda: Split(bias=True), rows.points(4, (6,), targets=4), TYPE_2
    ),
    # One datum with one position: each factor has nothing to vary with.
    "one point": Exact(lambda: models.case("mlp").model, POINT),
    "one point, bias apart": Exact(lambda: models.case("mlp").model, POINT, kfac="(bias=separate)"),
    "one regression": Exact(
        lambda: models.case("mlp-regression").model, rows.points(1, (5,), targets=2)
    ),
    # In a causal model nothing behind the last supervised position counts: one row here.
    **{
        f"one token of {name}": Exact(lambda name=name: models.case(name).model, text((3, 5)))
        for name in ("tiny-gpt2", "tiny-lora", "tiny-llama", "tiny-llama-tied")
    },
    "one token of bert": Exact(
        lambda: models.case("tiny-bert-mlm").model, text((4,)), likelihood="masked-lm"
    ),
    # The same input again and again, whatever the labels.
    "one input, many labels": Exact(
        lambda: models.case("mlp").model, classes(POINT, 0, 3, 1, 1, 2)
    ),
    **{
        f"one context of {name}": Exact(
            lambda name=name: models.case(name).model, text((3, 5), (3, 1), (3, 6), (3, 5))
        )
        for name in ("tiny-gpt2", "tiny-lora", "tiny-llama", "tiny-llama-tied")
    },
    # Attention over equal values gives that value: in Llama, without absolute positions, one
    # token repeated has the same inputs everywhere, and sums over positions are exact.
    **{
        f"one word of {name}": Exact(
            lambda name=name: models.case(name).model,
            text((2, 2, 2, 2, 2), (2, 2, 2), (2, 2, 2, 2), supervised=2),
            kfac="(sharing=reduce)",
        )
        for name in ("tiny-llama", "tiny-llama-tied")
    },
}


# Would catch: factors divided by the wrong count (rows, examples, draws, columns), positions
# summed where they should not be or the other way round, G and A of other rows, padding or
# unsupervised rows in one of them, uses of a shared weight lost, a bias without its ones.
@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
@pytest.mark.parametrize(
    ("name", "labels"), [(name, labels) for name in EXACT for labels in EXACT[name].options]
)
def test_one_kronecker_product_is_the_whole_block(name, labels, structure):
    case = EXACT[name]
    model, data = made(case.model) if name.startswith("deep") else case.model(), case.data
    options = {**case.options[labels], "likelihood": case.likelihood, "progress": False}
    fisher = fs.estimate(model, rows.examples(data), structure=structure + case.kfac, **options)
    per = "tensor" if "separate" in case.kfac else "layer"
    truth = fs.estimate(model, rows.examples(data), structure=fs.Block(per=per), **options)
    blocks = [b.names for b in fisher.layout if b.kind in {"kronecker", "eigen", "dense"}]
    assert blocks and any(b.kind in {"kronecker", "eigen"} for b in fisher.layout)
    pairs = [[whole(f, names) for f in (fisher, truth)] for names in blocks]
    largest = max(float(expected.norm()) for _, expected in pairs)
    for names, (found, expected) in zip(blocks, pairs, strict=True):
        # Where there is one value only, queries and keys change nothing.
        bound = 1e-5 * float(expected.norm()) + 1e-9 * largest
        assert float((found - expected).norm()) <= bound, names


# Would catch: an oracle that would call any two matrices equal.
def test_where_both_vary_the_product_is_not_the_block():
    model, data = made(Chain), rows.examples(rows.points(7, (4,), targets=2))
    fisher, truth = (
        fs.estimate(model, data, structure=s, progress=False) for s in ("kfac", "block")
    )
    names = ("middle.weight",)
    error = float((whole(fisher, names) - whole(truth, names)).norm())
    assert error > 0.1 * float(whole(truth, names).norm())


# Would catch: the uses of a tied table counted one by one within KFAC, or factors made of the
# head's use alone. What has no factors keeps its exact diagonal, cross terms of its uses
# included, and the coverage names it.
@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("gpt2", "transformer.wte.weight"),
        ("llama-tied", "model.embed_tokens.weight"),
        ("tiny-lora", "base_model.model.transformer.wte.weight"),
        ("bert-mlm", "bert.embeddings.word_embeddings.weight"),
    ],
)
def test_a_tied_head_keeps_its_exact_diagonal_by_name(name, tied, structure):
    case = models.case(name)
    fisher = fs.estimate(case.model, rows.examples(case.rows), structure=structure, progress=False)
    assert fisher.coverage[tied].startswith("exact diagonal, no Kronecker factors")
    truth, _ = brute.reference(name, "example")
    assert not {b.inputs for b in fisher.layout if b.factored} & {tied}
    found = fisher.diagonal("sum")[tied].double()
    assert float((found - truth[tied]).norm()) <= 1e-5 * float(truth[tied].norm())


def whole(fisher: fs.Fisher, names: tuple[str, ...]) -> Tensor:
    """The matrix of some parameters that make up a block."""
    shapes = {n: fisher.identity.parameters[n] for n in names}
    sizes = [math.prod(shape) for shape in shapes.values()]
    unit = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, 1)
    v = {n: u.reshape(-1, *s) for (n, s), u in zip(shapes.items(), unit, strict=True)}
    found = fisher.matvec(v)
    return torch.cat([found[n].reshape(sum(sizes), -1) for n in names], 1)

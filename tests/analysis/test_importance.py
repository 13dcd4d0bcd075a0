import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.builders import draw, fisher_of, like, model
from fisherscope.analysis import importance
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.errors import ParameterError
from structures.matrices import explicit, make

SHAPES = {
    "model.embed_tokens.weight": (7, 3),
    "model.layers.0.self_attn.q_proj.weight": (4, 3),
    "model.layers.0.self_attn.q_proj.bias": (4,),
    "model.layers.0.mlp.up_proj.weight": (5, 3),
    "model.layers.1.self_attn.q_proj.weight": (4, 3),
    "model.norm.weight": (3,),
}
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


def _fisher(**options):
    return fisher_of(draw(SHAPES), tokens=TOKENS, **options)


def test_per_parameter_is_the_diagonal():
    # Would catch: values not in the parameter's shape, a wrong normalisation.
    fisher = _fisher()
    plain = importance(fisher, normalize=False)
    assert all(torch.equal(plain.values[n], d) for n, d in fisher.diagonal().items())
    shares = importance(fisher).values
    assert sum(v.double().sum() for v in shares.values()) == pytest.approx(1, rel=1e-6)
    assert plain.total == pytest.approx(fisher.trace())
    assert plain.to_frame()["tensor"].tolist() == list(SHAPES)


@pytest.mark.parametrize("unit", ["example", "token"])
def test_tensors_agree_with_the_fisher_itself(unit):
    # Would catch: standard errors for another unit than the means, sums given as means.
    fisher = _fisher(unit=unit)
    frame = importance(fisher, per="tensor", normalize=False).to_frame()
    expected = fisher.to_frame()
    for mine, theirs in (("importance", "trace"), ("mean", "mean"), ("relative_se",) * 2):
        np.testing.assert_allclose(frame[mine], expected[theirs], rtol=1e-6)
    np.testing.assert_allclose(frame["mean_se"], expected["se"] / expected["n_parameters"])
    np.testing.assert_allclose(frame["share"], expected["trace"] / fisher.trace())


@pytest.mark.parametrize(
    ("per", "groups"),
    [
        (
            "layer",
            {(None, "embed"): [0], (0, "0"): [1, 2, 3], (1, "1"): [4], (None, "norm"): [5]},
        ),
        (
            "module",
            {
                (None, "embed"): [0],
                (0, "q_proj"): [1, 2],
                (0, "up_proj"): [3],
                (1, "q_proj"): [4],
                (None, "norm"): [5],
            },
        ),
    ],
)
def test_groups_of_tensors_add_up_within_examples(per, groups):
    # Would catch: standard errors added in squares, as if tensors of one example were
    # independent; a mean of means instead of the mean over all parameters of the group.
    fisher = _fisher()
    frame = importance(fisher, per=per, normalize=False).to_frame()
    keys = list(zip(frame["layer"], frame["group" if per == "layer" else "module"], strict=True))
    assert keys == list(groups)
    sizes = [int(np.prod(s)) for s in SHAPES.values()]
    for row, columns in zip(frame.itertuples(), groups.values(), strict=True):
        x = fisher.ledger.squares[:, columns].sum(1)
        n = sum(sizes[c] for c in columns)
        assert row.n_parameters == n
        assert row.importance == pytest.approx(x.mean())
        assert row.mean == pytest.approx(x.mean() / n)
        assert row.mean_se == pytest.approx(x.std(ddof=1) / np.sqrt(len(x)) / n)
        assert row.reliable == (row.mean_se <= 0.25 * row.mean)


def test_share_errors_agree_with_the_jackknife():
    # The jackknife is an independent estimate of the same standard error.
    # Would catch: the error of the mean used for the share, whose denominator varies too.
    fisher = fisher_of(draw(SHAPES, n=400))
    frame = importance(fisher, per="tensor").to_frame()
    x = fisher.ledger.squares
    left = x.sum(0) - x
    shares = left / left.sum(1, keepdims=True)
    n = len(x)
    jackknife = np.sqrt((n - 1) / n * np.square(shares - shares.mean(0)).sum(0))
    np.testing.assert_allclose(frame["share_se"], jackknife, rtol=0.02)
    assert frame["share"].sum() == pytest.approx(1)


def test_a_grouped_fisher_gives_the_same_aggregates():
    # Would catch: the number of groups taken for the number of parameters.
    for per in ("tensor", "layer", "module"):
        diagonal, grouped = (
            importance(fisher_of(draw(SHAPES), structure=s), per=per).to_frame()
            for s in ("diagonal", "grouped")
        )
        pd.testing.assert_frame_equal(diagonal, grouped, rtol=1e-5)


def test_obd_is_half_f_theta_squared():
    # Would catch: a missing half, |theta| for theta squared, weights of the wrong tensor.
    m = model("llama")
    fisher = fisher_of(like(m), model_fingerprint=model_fingerprint(m))
    found = importance(fisher, m, method="obd", normalize=False)
    total = 0.0
    rows = found.to_frame().set_index("tensor")
    for name, p in m.named_parameters():
        expected = 0.5 * fisher.diagonal()[name].double() * p.detach().double() ** 2
        torch.testing.assert_close(found.values[name].double(), expected, rtol=1e-6, atol=0)
        assert rows.loc[name, "importance"] == pytest.approx(float(expected.sum()), rel=1e-6)
        total += float(expected.sum())
    assert found.total == pytest.approx(total, rel=1e-6)


def test_heads_are_sums_over_their_slices():
    # Would catch: a head's parts summed along the wrong dimension, k/v heads multiplied by the
    # queries that share them, shares of the attention instead of the model.
    m = model("llama")
    fisher = fisher_of(like(m))
    f = {name: d.double() for name, d in fisher.diagonal().items()}
    frame = importance(fisher, m, per="head", normalize=False).to_frame()
    attention = "model.layers.1.self_attn"
    rows = frame[frame["attention"] == attention].set_index(["role", "head"])
    assert rows["queries"].to_dict() == {
        **{(role, h): 1 for role in "qo" for h in range(4)},
        **{(role, h): 2 for role in "kv" for h in range(2)},
    }
    for role, count in {"q": 4, "k": 2, "v": 2, "o": 4}.items():
        weight = f[f"{attention}.{role}_proj.weight"]
        for head in range(count):
            cut = slice(4 * head, 4 * head + 4)
            expected = float((weight[:, cut] if role == "o" else weight[cut]).sum())
            row = rows.loc[(role, head)]
            assert row["importance"] == pytest.approx(expected)
            assert row["n_parameters"] == 4 * 16
            assert row["mean"] == pytest.approx(expected / 64)
            assert row["share"] == pytest.approx(expected / fisher.trace())
            assert row["layer"] == 1


def test_errors_of_heads_come_from_halves_or_not_at_all():
    # Would catch: a head called reliable on no evidence; a single half-difference, near zero
    # by chance, taken for a small error.
    m = model("llama")
    without = importance(fisher_of(like(m)), m, per="head")
    assert without.outcome == "no_standard_error"
    assert without.to_frame()["relative_se"].isna().all()
    assert not without.to_frame()["reliable"].any()

    fisher = fisher_of(like(m, n=40), halves=True)
    found = importance(fisher, m, per="head", normalize=False)
    assert (found.outcome, found.se_source) == ("ok", "halves")
    frame = found.to_frame()
    a, b = (
        importance(half, m, per="head", normalize=False).to_frame()["importance"]
        for half in fisher.halves
    )
    squares = ((a - b) / (a + b)) ** 2
    pooled = squares.groupby([frame["attention"], frame["role"]]).transform("mean") ** 0.5
    tensors = importance(fisher, per="tensor").to_frame().set_index("tensor")["relative_se"]
    trace = [
        tensors[f"{at}.{role}_proj.weight"]
        for at, role in zip(frame["attention"], frame["role"], strict=True)
    ]
    np.testing.assert_allclose(frame["relative_se"], np.fmax(pooled, trace))


def test_the_half_difference_is_an_unbiased_error():
    # The oracle is the spread over many replications.
    # Would catch: a factor of two between the error of a half and of the whole.
    rng = np.random.default_rng(0)
    shapes = {"layers.0.fc.weight": (2, 2)}
    m = torch.nn.Module()
    m.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2, bias=False)})])
    own = model_fingerprint(m)
    sums, errors = [], []
    for _ in range(400):
        scores = {name: rng.gamma(4, size=(16, *shape)) for name, shape in shapes.items()}
        fisher = fisher_of(scores, halves=True, model_fingerprint=own)
        row = importance(fisher, m, per="tensor", method="obd", normalize=False).to_frame().iloc[0]
        a, b = (
            importance(half, m, per="tensor", method="obd", normalize=False).total
            for half in fisher.halves
        )
        sums.append(row["importance"])
        errors.append((a - b) ** 2 / (a + b) ** 2)
        assert row["relative_se"] >= abs(a - b) / (a + b) * (1 - 1e-9)
    spread = np.std(sums) / np.mean(sums)
    assert np.sqrt(np.mean(errors)) == pytest.approx(spread, rel=0.1)


def test_few_examples_are_a_named_outcome():
    # Would catch: standard errors from two examples presented like any other.
    assert importance(fisher_of(draw(SHAPES, n=7)), per="tensor").outcome == "too_few_examples"
    assert importance(fisher_of(draw(SHAPES, n=8)), per="tensor").outcome == "ok"
    one = importance(fisher_of(draw(SHAPES, n=1)), per="tensor")
    assert one.outcome == "no_standard_error"
    assert not one.to_frame()["reliable"].any()


def test_a_zero_fisher_has_no_shares():
    # Would catch: a warning or a crash, or zero over zero called reliable.
    zero = fisher_of({"layers.0.fc.weight": np.zeros((9, 2, 2))})
    frame = importance(zero, per="layer").to_frame()
    assert frame["mean"].tolist() == [0]
    assert frame["share"].isna().all()
    assert not frame["reliable"].any()


def test_results_are_json():
    # Would catch: pandas' NA or NumPy integers in what is written to results.json.
    for per in ("parameter", "layer", "module"):
        text = json.dumps(importance(_fisher(), per=per).to_dict())
        assert json.loads(text)["frame"][0]["layer"] is None


def test_what_is_impossible_is_said():
    fisher, m = fisher_of(like(model("llama"))), model("llama")
    grouped = fisher_of(like(m), structure="grouped")
    for options, message in (
        ({"method": "hessian"}, "method='hessian' is unknown"),
        ({"per": "neuron"}, "per='neuron' is unknown"),
        ({"method": "obd"}, "pass model="),
        ({"per": "head"}, "pass model="),
    ):
        with pytest.raises(ParameterError, match=message):
            importance(fisher, **options)
    for options in ({}, {"per": "head"}, {"per": "tensor", "method": "obd"}):
        with pytest.raises(ParameterError, match='structure="diagonal"'):
            importance(grouped, m, **options)


@pytest.mark.parametrize("structure", ["kfac mixed", "ekfac mixed", "block", "dense"])
def test_block_structures_are_read_through_their_diagonal(structure):
    # Would catch: the factors' numbers taken for the parameters', draws counted twice.
    fisher = make(structure, draws=3)
    found = importance(fisher, normalize=False)
    start, diagonal = 0, np.diag(explicit(fisher)) / fisher.denominator()
    for name, shape in fisher.identity.parameters.items():
        part = diagonal[start : start + math.prod(shape)]
        start += len(part)
        assert tuple(found.values[name].shape) == shape
        np.testing.assert_allclose(found.values[name].numpy().ravel(), part, rtol=1e-9)
        row = found.to_frame().set_index("tensor").loc[name]
        assert row["importance"] == pytest.approx(part.sum())
    assert found.total == pytest.approx(diagonal.sum())
    assert importance(fisher, per="layer").to_frame()["share"].sum() == pytest.approx(1)

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fisherscope as fs
from fisherscope.errors import ParameterError
from fisherscope.studies.percolation.scaling import exponents

OPTIONS = {
    "orders": ("fisher", "random"), "side": 0, "candidates": 0, "structure": False,
    "repetitions": 2, "points": 8, "max_examples": None,
}  # fmt: skip


def chain(width):
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    )


@pytest.fixture(scope="module")
def sizes():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=g)
    y = (x @ torch.randn(6, 3, generator=g)).argmax(1)
    models, studies = {}, {}
    for width in (6, 12, 24):
        torch.manual_seed(0)
        net = chain(width)
        optimizer = torch.optim.Adam(net.parameters(), 2e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        net.zero_grad(set_to_none=True)
        name = str(width)
        fisher = fs.estimate(net, [(x, y)], progress=False)
        models[name] = net
        studies[name] = fs.percolation(net, {"a": fisher}, {"a": [(x, y)]}, **OPTIONS)
    return studies, models


# Would catch: an exponent of the reciprocal, natural against decimal logarithms, sizes that are
# not centred.
def test_exponents_of_a_power_law_are_found():
    n = np.array([10.0, 40.0, 300.0])
    values = np.stack([3.0 * n**-0.7, 0.1 * n**0.2])
    np.testing.assert_allclose(exponents(n, values), [-0.7, 0.2])


# Would catch: a size of another level, a threshold of another model, and a slope of other points.
def test_thresholds_against_size(sizes):
    studies, models = sizes
    found = fs.finite_size(studies, models, draws=8)
    for row in found.points.to_dict("records"):
        study = studies[row["model"]]
        weights = sum(p.numel() for p in models[row["model"]].parameters())
        assert row["size"] == weights and row["level"] == "weight"
        (expected,) = [
            r["value"] for r in study.thresholds.to_dict("records")
            if (r["order"], r["quantity"]) == (row["order"], "midpoint")
        ]  # fmt: skip
        assert row["value"] == pytest.approx(expected, nan_ok=True)
    for row in found.slopes.to_dict("records"):
        assert row["outcome"] == "ok" and row["n_models"] == 3
        mine = [r for r in found.points.to_dict("records") if r["order"] == row["order"]]
        slope = np.polyfit(np.log([r["size"] for r in mine]), np.log([r["value"] for r in mine]), 1)
        assert row["exponent"] == pytest.approx(slope[0])
        assert row["low"] <= row["exponent"] <= row["high"]
    assert found.to_frame().equals(found.slopes)
    assert [r["nodes"] for r in found.graph.to_dict("records")] == [9 + 2 * w for w in (6, 12, 24)]
    assert found.sharpening["outcome"].tolist() == ["ok"]


# Would catch: a spread that is not relative, of the fraction removed instead of that left, or over
# examples. The chain has about as many bonds per node as its width, so that a fraction 1/width is
# left at the transition; and its window narrows.
def test_the_transition_of_a_wider_graph_is_sharper():
    names = (16, 48, 144)
    torch.manual_seed(0)
    models = {str(w): chain(w) for w in names}
    g = torch.Generator().manual_seed(0)
    data = {"a": [(torch.randn(8, 6, generator=g), torch.arange(8) % 3)]}
    options = OPTIONS | {"orders": ("random",), "points": 3}
    studies = {name: fs.percolation(m, None, data, **options) for name, m in models.items()}
    found = fs.finite_size(studies, models, draws=24)
    left = found.graph["left"].to_numpy()
    assert left[0] > left[1] > left[2]
    (row,) = found.sharpening.to_dict("records")
    assert row["high"] < 0 and row["low"] < -1 / 3 + 0.25 and row["high"] > -1 / 3 - 0.25


def test_what_makes_no_exponent(sizes):
    studies, models = sizes
    two = {name: studies[name] for name in ("6", "12")}
    found = fs.finite_size(two)
    assert set(found.slopes["outcome"]) == {"too_few_models"} and found.graph.empty
    with pytest.raises(ParameterError, match="draws=3 must be"):
        fs.finite_size(studies, draws=3)
    with pytest.raises(ParameterError, match=r"models\['6'\]: .*no linear layer"):
        fs.finite_size(studies, {"6": nn.Sequential(nn.ReLU())})

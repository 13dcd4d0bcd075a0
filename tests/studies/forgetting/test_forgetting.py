from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fisherscope.errors import ParameterError, TaskError
from fisherscope.studies.forgetting import forgetting


def regression(n=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=g)
    return x, torch.randn(n, 2, generator=g)


def pair(size=0.3, make=lambda: nn.Linear(3, 2)):
    torch.manual_seed(0)
    base = make()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(size * torch.randn_like(p))
    return base, tuned


def run(base, tuned, tasks, **options):
    return forgetting(base, tuned, tasks, progress=False, **options)


def test_a_linear_model_is_predicted_exactly():
    # The loss of a linear Gaussian model is its own quadratic: nothing may remain but the noise
    # of drawn labels. Catches a missing half, a sign, and sums per example for sums per token.
    base, tuned = pair()
    x, y = regression()
    found = run(base, tuned, {"a": (x, y)}, draws=400, structures=("dense", "diagonal"))
    row = found.stages.iloc[0]
    with torch.no_grad():
        before, after = (0.5 * (m(x) - y).square().sum(1) for m in (base, tuned))
        kl = 0.5 * (base(x) - tuned(x)).square().sum(1).mean()
    assert row["loss_change"] == pytest.approx(float((after - before).mean()), rel=1e-4)
    assert row["kl"] == pytest.approx(float(kl), rel=1e-4)
    assert row["second"] == pytest.approx(float(kl), rel=0.15)
    assert row["dense"] - row["first"] == pytest.approx(float(kl), rel=0.15)
    assert row["remainder"] == pytest.approx(0, abs=0.15 * float(kl))
    assert np.isnan(row["accuracy"])
    overall = found.calibration[found.calibration["scale"].isna()]
    calibration = overall.set_index("method")
    assert calibration.loc["full", "slope"] == pytest.approx(1, abs=0.1)
    assert calibration.loc["full", "log_error"] < 0.15


def classes(n=40, seed=0, wide=6):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, wide, generator=g), torch.randint(3, (n,), generator=g)


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def test_stages_and_path():
    # Catches checkpoints out of order, a path that is not a multiple of the displacement, and
    # an end of the path that is another model than the tuned one.
    base, tuned = pair(0.2, network)
    middle = copy.deepcopy(base)
    with torch.no_grad():
        for m, b, t in zip(*(x.parameters() for x in (middle, base, tuned)), strict=True):
            m.copy_(0.5 * b + 0.5 * t)
    tasks = {"a": classes(), "b": classes(seed=1)}
    found = run(base, tuned, tasks, checkpoints={"middle": middle}, points=(0.5,))
    assert list(found.stages["stage"]) == ["middle", "tuned"] * 2
    stages = found.stages.set_index(["task", "stage"])
    path = found.path.set_index(["task", "t"])
    for task in tasks:
        x, y = tasks[task]
        with torch.no_grad():
            hits = (tuned(x).argmax(1) == y).double().mean()
            loss = nn.functional.cross_entropy(middle(x), y)
            start = nn.functional.cross_entropy(base(x), y)
        assert stages.loc[(task, "tuned"), "accuracy"] == pytest.approx(float(hits))
        assert stages.loc[(task, "middle"), "loss"] == pytest.approx(float(loss), rel=1e-5)
        assert path.loc[(task, 0.5), "measured"] == pytest.approx(float(loss - start), abs=1e-5)
        for t, stage in ((0.5, "middle"), (1.0, "tuned")):
            for key in ("first", "second", "diagonal", "kfac", "ekfac"):
                assert path.loc[(task, t), key] == pytest.approx(
                    stages.loc[(task, stage), key], rel=1e-3, abs=1e-7
                )
    sums = found.layers.groupby("task")[["first", "second"]].sum()
    whole = stages.xs("tuned", level="stage")
    np.testing.assert_allclose(sums["second"], whole.loc[sums.index, "second"], rtol=1e-5)
    assert found.calibration["n"].tolist() == [4] * 4 + [2] * 8
    assert len(found.to_frame()) == 2 and len(found.findings()) == 4


def test_nothing_has_moved():
    # Catches a division by the length of a displacement that is zero.
    base, _ = pair(0.2, network)
    found = run(base, copy.deepcopy(base), {"a": classes()})
    assert found.outcome == "no_displacement"
    row = found.stages.iloc[0]
    assert row["loss_change"] == row["kl"] == row["second"] == row["norm"] == 0
    assert found.findings() == ["Nothing has moved: the two models have the same weights."]
    assert len(found.calibration) == 0


def test_both_models_come_back():
    base, tuned = pair(0.2, network)
    before = [p.detach().clone() for m in (base, tuned) for p in m.parameters()]
    run(base, tuned, {"a": classes()})
    after = [p for m in (base, tuned) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None and p.requires_grad for p in after)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tasks": {}}, TaskError, "tasks is empty"),
        ({"points": (0.5, 1.5)}, ParameterError, "points has 1.5"),
        ({"checkpoints": {"tuned": network()}}, ParameterError, "is called 'tuned'"),
        ({"tuned": nn.Linear(6, 3)}, ParameterError, "another architecture"),
        ({"checkpoints": {"s9": nn.Linear(6, 3)}}, ParameterError, "s9 is of another"),
    ],
)
def test_bad_input_before_any_long_work(options, error, said):
    base, tuned = pair(0.2, network)
    given = {"base": base, "tuned": tuned, "tasks": {"a": classes()}} | options
    with pytest.raises(error, match=said):
        forgetting(**given, progress=False)

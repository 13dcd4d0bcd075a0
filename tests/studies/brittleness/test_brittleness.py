from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.studies.brittleness import running

QUICK = {"steps": 4, "every": 2, "seeds": (1, 2, 3), "looks": 0, "progress": False}


def rows(count, seed):
    """Two features: the old label is the sign of the first, the new one that of the second."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long(), (x[:, 1] > 0).long()


class Two(nn.Module):
    """Knows the old task by its first feature; two weights in a row for each feature.

    With another scale the first pair is rescaled, the function is the same.
    """

    def __init__(self, scale=1.0):
        super().__init__()
        self.old_in, self.new_in = (nn.Linear(1, 1, bias=False) for _ in range(2))
        self.old_out, self.new_out = (nn.Linear(1, 2, bias=False) for _ in range(2))
        with torch.no_grad():
            self.old_in.weight.fill_(1 / scale)
            self.old_out.weight.copy_(torch.tensor([[-scale], [scale]]))
            self.new_in.weight.fill_(1.0)
            self.new_out.weight.zero_()

    def forward(self, x):
        return self.old_out(self.old_in(x[:, :1])) + self.new_out(self.new_in(x[:, 1:]))


def old_rows():
    """The old task knows nothing of the second feature, so only forgetting can hurt it."""
    x, old, _ = rows(24, 2)
    return x * torch.tensor([1.0, 0.0]), old


def study(models, **options):
    x, _, new = rows(96, 1)
    y, old = old_rows()
    given = {"rates": (0.05,), "learn": (x, new), **QUICK, **options}
    return fs.brittleness(models, given.pop("learn"), {"old": (y, old)}, **given)


class Line(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.line = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.line.weight, weight)

    def forward(self, x):
        return self.line(x)


def test_the_damage_of_a_line_in_closed_form():
    # One weight w: the new loss is ½ s (w − 2)², the old ½ r w². A progress P fixes w, whatever
    # the optimizer does, and so the damage. Catches damages at equal steps instead of progress,
    # at the nearest measurement, or per example of another task.
    g = torch.Generator().manual_seed(0)
    x, u = torch.randn(40, 1, generator=g), torch.randn(12, 1, generator=g)
    held, starts = torch.randn(20, 1, generator=g), {"near": 0.2, "far": -0.6}
    found = fs.brittleness(
        {name: Line(w) for name, w in starts.items()},
        (x, 2 * x),
        {"old": (u, 0 * u)},
        held_out=(held, 2 * held),
        rates=(0.1,),
        steps=10,
        every=1,
        seeds=(1, 2, 3),
        looks=0,
        progress=False,
    )
    row = found.ratio("far")
    s, r = (float(v.double().square().mean()) for v in (held, u))
    damage = {}
    for name, w in starts.items():
        end = 2 - math.sqrt((w - 2) ** 2 - 2 * row["at"] / s)
        damage[name] = r * (end**2 - w**2) / 2
    assert row["at"] > 0.5
    assert row["reference_damage"] == pytest.approx(damage["near"], rel=0.01)
    assert row["damage"] == pytest.approx(damage["far"], rel=0.03, abs=0.002)
    assert found.collapse["uninformed"].iloc[0] == pytest.approx(0.5 * math.log(2 * math.pi))


def test_identical_models_are_exactly_as_brittle():
    # Catches anything that tells models apart by their name or place: rates, seeds, resamples.
    found = study({"a": Two(), "b": Two()}, looks=1)
    for criterion in ("progress", "level", "same_rate"):
        row = found.ratio(criterion=criterion)
        assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (1, 1, 1)
        assert row["outcome"] == "not_resolved" and row["difference"] == 0
    assert "not told apart" in found.findings()[0]
    geometry = found.geometry.drop(columns="model")
    half = len(geometry) // 2
    assert geometry[:half].equals(geometry[half:].reset_index(drop=True))


def test_a_planted_brittle_model_is_found():
    # The same function, but the old feature hangs on a small weight with a large one behind it,
    # so that steps of the same size move it four times as far. Catches a ratio upside down and
    # one of models that were not matched.
    models = {"plain": Two(), "brittle": Two(4.0)}
    x, *_ = rows(9, 5)
    assert torch.allclose(models["plain"](x), models["brittle"](x), atol=1e-6)
    found = study(models, steps=6)
    row = found.ratio("brittle")
    assert row["outcome"] == "more_brittle" and row["ratio_low"] > 1.2
    assert found.findings()[0].startswith("brittle is more brittle than plain")
    back = study(dict(reversed(models.items())), steps=6).ratio("plain")
    assert back["outcome"] == "less_brittle"
    assert back["ratio"] == pytest.approx(1 / row["ratio"], rel=0.3)


@pytest.fixture(scope="module")
def looked():
    """A study with all that stands beside, and proof that its models came back untouched."""
    models = {"a": Two(), "b": Two(2.0)}
    models["a"].train()
    before = copy.deepcopy({n: m.state_dict() for n, m in models.items()})
    random = torch.random.get_rng_state()
    found = study(models, looks=2)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert models["a"].training and all(p.grad is None for p in models["a"].parameters())
    for name, model in models.items():
        assert all(torch.equal(v, before[name][k]) for k, v in model.state_dict().items())
    return found


def test_fisher_and_curvature_stand_beside(looked):
    # Trace and curvature against fs.estimate and fs.damage at weights that were tuned alone.
    found = looked
    table = found.geometry[found.geometry["model"] == "a"]
    assert table["step"].tolist() == [0, 2, 4]
    y, old = old_rows()
    start = fs.estimate(Two(), (y, old), fisher_type="mc", progress=False)
    assert table["trace"].iloc[0] == pytest.approx(start.trace(per="token"))
    last = table.iloc[-1]
    share = last["second"] / (abs(last["first"]) + last["second"])
    assert last["curvature_share_low"] <= last["curvature_share"] <= last["curvature_share_high"]
    assert last["curvature_share"] == pytest.approx(share, abs=0.1) and last["n_seeds"] == 3
    curves = found.curves
    end = curves[(curves["model"] == "a") & (curves["task"] == "old") & (curves["step"] == 4)]
    assert last["measured"] == pytest.approx(end["damage"].iloc[0])
    # To second order nothing else is there: what is predicted is near to what is measured.
    assert last["first"] + last["second"] == pytest.approx(last["measured"], rel=0.5)


def test_runs_that_diverge_are_a_result(monkeypatch):
    # Catches a study that ends with an error, one that averages over broken runs, and one that
    # leaves out the seed for the broken model only, so that seeds no longer pair.
    real = running.follow

    def follow(model, *args, **options):
        breaks = options["seed"] == 3 and float(model.old_out.weight.detach().abs().max()) > 1.5
        if breaks:
            options["on_point"] = None
        course = real(model, *args, **options)
        if breaks:
            losses = {task: rows[:2] for task, rows in course.losses.items()}
            return dataclasses.replace(
                course, steps=course.steps[:2], losses=losses, outcome="diverged"
            )
        return course

    monkeypatch.setattr(running, "follow", follow)
    models = {"plain": Two(), "brittle": Two(4.0)}
    found = study(models, seeds=(1, 2, 3, 4), looks=1)
    row = found.ratio("brittle")
    assert (row["n_seeds"], row["n_diverged"]) == (3, 1) and found.outcome == "ok"
    assert any("brittle diverged in 1 of 4 runs (matched)" in line for line in found.findings())
    broken = found.training[found.training["outcome"] == "diverged"]
    assert set(broken["seed"]) == {3} and set(broken["model"]) == {"brittle"}
    without = study(models, seeds=(1, 2, 4))
    assert row["ratio"] == pytest.approx(without.ratio("brittle")["ratio"])
    few = study(models, seeds=(1, 2, 3))
    assert few.outcome == "diverged" and few.ratio()["outcome"] == "diverged"
    assert "There is no ratio" in few.findings()[0]


def test_a_rate_too_large_is_recorded():
    found = study({"a": Two(), "b": Two(2.0)}, rates=(1e-2, 1e38))
    assert found.rates["progress"].isna().any() and found.outcome == "ok"


def test_a_model_that_learns_nothing_is_said():
    # The held-out labels are the opposite of those that are learnt.
    x, old = old_rows()
    found = fs.brittleness(
        {"a": Two(), "b": Two()},
        (x, old),
        {"old": (x, old)},
        held_out=(x + 1e-3, 1 - old),
        rates=(1e-2,),
        **QUICK,
    )
    assert found.outcome == "no_progress" and found.stuck == ("a", "b")
    assert found.to_frame().empty and "falls at no rate for a and b" in found.findings()[0]
    assert len(found.rates) == 2


def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    # Catches runs made again, and runs kept for one model or seed that are taken for another's.
    models = {"a": Two(), "b": Two(2.0)}
    whole = study(models, looks=1)
    real, calls = running.follow, []

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(running, "follow", stopping)
    with pytest.raises(KeyboardInterrupt):
        study(models, looks=1, folder=tmp_path / "runs")
    made = (tmp_path / "runs" / running.FILE).read_text().splitlines()[1:]
    assert len(made) == 6
    again = study(models, looks=1, folder=tmp_path / "runs")
    assert again.ratios.equals(whole.ratios) and again.geometry.equals(whole.geometry)
    calls.clear()
    monkeypatch.setattr(running, "follow", lambda *a, **o: pytest.fail("made again"))
    study(models, looks=1, folder=tmp_path / "runs")
    monkeypatch.setattr(running, "follow", real)
    other = study(models, looks=1, folder=tmp_path / "runs", seeds=(4, 5, 6))
    assert not other.ratios.equals(whole.ratios)


def test_the_result_is_plain_and_its_rows_add_up(looked):
    found = looked
    content = found.to_dict()
    assert content["reference"] == "a" and len(content["ratios"]) == 6
    assert set(found.curves["arm"]) == {"matched", "same_rate"}
    ends = found.curves[(found.curves["task"] == "all") & (found.curves["arm"] == "matched")]
    assert np.isfinite(ends[["damage_low", "damage_high"]].to_numpy()).all()
    assert len(found.runs) == 4 * 3 * 2 * 3  # model and arm, seed, task, measurement

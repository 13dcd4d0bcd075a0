from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fisherscope as fs
from fisherscope.errors import IdentityError, ParameterError, TaskError
from oracles import models, rows

QUICK = {
    "side": 0, "candidates": 0, "structure": False, "repetitions": 2, "points": 8,
    "max_examples": None,
}  # fmt: skip


@cache
def trained():
    """A ReLU network that has learnt three classes, its data and its Fisher."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(96, 4)
    y = (x @ torch.randn(4, 3)).argmax(1)
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(120):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.zero_grad(set_to_none=True)
    data = [(x, y)]
    return net, data, fs.estimate(net, data, progress=False)


def state(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def unchanged(model, before):
    return all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def losses(found, **which):
    table = found.curves
    for key, value in which.items():
        table = table[table[key] == value]
    return table.sort_values("removed")


# Would catch: a removal that leaves something behind, an intact point that is measured at other
# weights, a last point that differs between orders, a mask transposed or read the wrong way round.
@pytest.mark.parametrize("removal", ["zero", "mean"])
def test_curves_against_weights_that_are_removed_by_hand(removal):
    net, data, fisher = trained()
    before = state(net)
    found = fs.percolation(net, fisher, data, orders=("obd", "inverse"), removal=removal, **QUICK)
    assert unchanged(net, before)
    (x, y), diagonal = data[0], fisher.diagonal()
    for order, sign in (("obd", -1), ("inverse", 1)):
        score = torch.cat([
            (diagonal[n] * p**2 if order == "obd" else diagonal[n]).reshape(-1)
            for n, p in before.items()
        ])
        sequence = np.argsort(sign * score.double().numpy(), kind="stable")
        table = losses(found, order=order)
        assert table["removed"].iloc[0] == 0 and table["fraction"].iloc[-1] == 1
        for _, row in table.iterrows():
            damaged = copy.deepcopy(net)
            gone = torch.zeros(len(score), dtype=torch.bool)
            gone[sequence[: row["removed"]].copy()] = True
            parts = gone.split([p.numel() for p in before.values()])
            with torch.no_grad():
                for part, p in zip(parts, damaged.parameters(), strict=True):
                    fill = 0.0 if removal == "zero" else p.double().mean().float()
                    p.copy_(torch.where(part.reshape(p.shape), fill, p))
                logits = damaged(x)
                kl = F.kl_div(
                    logits.log_softmax(1), net(x).log_softmax(1),
                    log_target=True, reduction="batchmean",
                )  # fmt: skip
            assert row["loss"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-4)
            assert row["kl"] == pytest.approx(float(kl), rel=1e-3, abs=1e-5)
            assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    intact = found.intact["loss"].iloc[0]
    starts = found.curves[found.curves["removed"] == 0]
    assert (starts["loss"] == intact).all() and (starts["kl"] == 0).all()
    ends = found.curves[found.curves["fraction"] == 1]["loss"]
    assert ends.nunique() == 1
    if removal == "zero":
        assert ends.iloc[0] == pytest.approx(np.log(3))


# Would catch: weights left removed by an exception or by Ctrl-C in the middle of a measurement.
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_comes_back_after_an_interruption(error):
    net, data, fisher = trained()
    net = copy.deepcopy(net)
    before, calls = state(net), [0]

    def stop(module, args):
        calls[0] += 1
        if not torch.equal(net[0].weight, before["0.weight"]):
            raise error

    net.register_forward_pre_hook(stop)
    with pytest.raises(error):
        fs.percolation(net, fisher, data, orders=("fisher",), **QUICK)
    assert calls[0] and unchanged(net, before)


# Would catch: fractions that are ignored, rounded the wrong way, or lose the two ends.
def test_fractions_can_be_given():
    net, data, fisher = trained()
    options = QUICK | {"fractions": (0.5, 0.01, 0.25)}
    found = fs.percolation(net, fisher, data, orders=("fisher", "random"), **options)
    count = sum(p.numel() for p in net.parameters())
    expected = [0, round(0.01 * count), round(0.25 * count), round(0.5 * count), count]
    for order in ("fisher", "random"):
        assert losses(found, order=order)["removed"].tolist() == expected
    ends = losses(fs.percolation(net, fisher, data, fractions=(0, 1), orders=("obd",), **QUICK))
    assert ends["removed"].tolist() == [0, count]


# Would catch: a plan that counts fewer evaluations than there are, the same state of the model
# looked at twice because another task had been asked for first, and tasks looked at unasked.
def test_the_plan_bounds_what_is_evaluated(tmp_path):
    net, data, fisher = trained()
    plans = []
    options = QUICK | {"side": 2, "candidates": 3}
    found = fs.percolation(
        net, {"a": fisher, "b": fisher}, {"a": data, "b": data}, folder=tmp_path,
        on_plan=plans.append, **options,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").open()][1:]
    pairs = [(line["key"], task) for line in lines for task in line["tasks"]]
    assert len(pairs) == len(set(pairs))
    assert all(len(line["tasks"]) == 1 for line in lines if "|unit|" in line["key"])
    assert 0.5 * plans[0].evaluations < len(lines) <= plans[0].evaluations
    assert plans[0].watched == {"a": 96, "b": 96} and "96 of a" in str(plans[0])
    assert plans[0].seconds_each > 0 and found.plan["model"] == plans[0]
    assert set(map(tuple, found.plane[["by", "on"]].to_numpy())) == {
        ("a", "a"), ("b", "b"), ("", "a"), ("", "b")
    }  # fmt: skip


# Would catch: measurements that are done again, lost, or read back with fewer digits.
def test_an_interrupted_study_goes_on(tmp_path):
    net, data, fisher = trained()
    whole = fs.percolation(net, fisher, data, **QUICK)
    net, calls = copy.deepcopy(net), [0]

    def stop(module, args):
        calls[0] += 1
        if calls[0] == 12:
            raise RuntimeError

    handle = net.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError):
        fs.percolation(net, fisher, data, folder=tmp_path, **QUICK)
    file = tmp_path / "evaluations.jsonl"
    kept = len(file.read_text().splitlines())
    assert kept > 2
    with file.open("a") as stream:
        stream.write('{"key": "cut o')
    handle.remove()
    again = fs.percolation(net, fisher, data, folder=tmp_path, **QUICK)
    assert again.curves.equals(whole.curves)
    fs.percolation(net, fisher, data, folder=tmp_path, **QUICK)
    keys = [line.split('"tasks"')[0] for line in file.read_text().splitlines()]
    assert len(keys) == len(set(keys))
    with pytest.raises(IdentityError, match="other settings"):
        fs.percolation(net, fisher, data, folder=tmp_path, seed=1, **QUICK)


# Would catch: an order by F alone called F θ², or scores of the weights before the rescaling. With
# powers of two, F θ² is the same to the last bit.
def test_rescaling_a_relu_network_leaves_only_the_curves_of_obd_as_they_were():
    net, data, fisher = trained()
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        scale = 2.0 ** torch.tensor([6, -5, 4, 0, 3, -6, 5, -4, 2, -3, 6, -2])
        scaled[0].weight.mul_(scale[:, None])
        scaled[0].bias.mul_(scale)
        scaled[2].weight.div_(scale)
    other = fs.estimate(scaled, data, progress=False)
    orders = ("obd", "magnitude", "fisher")
    one = fs.percolation(net, fisher, data, orders=orders, **QUICK)
    two = fs.percolation(scaled, other, data, orders=orders, **QUICK)
    assert losses(one, order="obd").equals(losses(two, order="obd"))
    for order in ("magnitude", "fisher"):
        a, b = (losses(found, order=order).set_index("removed")["loss"] for found in (one, two))
        assert abs(a - b).max() > 0.05


def planted(scale: float):
    """A network that hangs on one hidden unit, made inconspicuous by a rescaling."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(64, 3)
    with torch.no_grad():
        net[0].weight.mul_(0.3)
        net[2].weight.mul_(0.3)
        net[0].weight[5] = torch.tensor([4.0, 0.0, 0.0]) * scale
        net[0].bias[5] = 0.0
        net[2].weight[:, 5] = torch.tensor([-3.0, 3.0]) / scale
        net[2].bias.copy_(torch.tensor([2.0, -2.0]))
    data = [(x, (x[:, 0] > 0.25).long())]
    return net, data, fs.estimate(net, data, progress=False)


# Would catch: candidates that are ranked by a score instead of being removed, units whose weights
# are only partly removed, and ranks that are reported for another unit.
@pytest.mark.parametrize("scale", [1.0, 2.0**-6, 2.0**6])
def test_a_planted_neuron_is_found_first_by_exact_removal(scale):
    net, data, fisher = planted(scale)
    options = QUICK | {"candidates": 8}
    found = fs.percolation(
        net, fisher, data, levels=("neuron",), orders=("obd", "random"), **options
    )
    first = found.critical.iloc[0]
    assert first["unit"].endswith("[5]") and first["place"] == 1 and first["resolved"]
    damaged = copy.deepcopy(net)
    with torch.no_grad():
        damaged[0].weight[5], damaged[0].bias[5], damaged[2].weight[:, 5] = 0, 0, 0
        x, y = data[0]
        cost = float(F.cross_entropy(damaged(x), y) - F.cross_entropy(net(x), y))
    assert first["cost"] == pytest.approx(cost, rel=1e-4)
    assert first["rank_obd"] == 1


# Would catch: noise whose length depends on how many weights it is spread over.
def test_noise_has_the_length_that_was_asked_for():
    from fisherscope.studies.percolation.removal import without

    net, _, _ = trained()
    named = dict(net.named_parameters())
    for share in (0.02, 0.5, 1.0):
        gone = {n: torch.rand(p.shape) < share for n, p in named.items()}
        moved = without(named, gone, "noise", norm=0.7, seed=3)
        steps = {n: moved[n] - named[n].detach() for n in moved}
        assert all((step[~gone[n]] == 0).all() for n, step in steps.items())
        assert float(sum((s**2).sum() for s in steps.values())) ** 0.5 == pytest.approx(0.7, 1e-3)


# Would catch: layers or heads that lose their bias or a projection, a fused or transposed
# projection read the wrong way, a tied weight removed under one name only.
@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_levels_of_a_transformer(name):
    case = models.case(name)
    data = rows.examples(case.rows)
    before = state(case.model)
    fisher = fs.estimate(case.model, data, progress=False)
    levels = ("weight", "neuron", "head", "layer")
    options = QUICK | {"side": 2, "structure": True, "points": 4}
    found = fs.percolation(case.model, fisher, data, levels=levels, **options)
    assert unchanged(case.model, before)
    assert list(dict.fromkeys(found.curves["level"])) == list(levels)
    assert set(found.structure["order"]) == {"fisher", "obd", "magnitude", "inverse", "random"}
    assert not found.plane.empty and not found.notes
    assert found.to_dict()["thresholds"] and found.findings() is not None


# Would catch: a threshold made up for a task that the model does not know.
def test_a_task_that_is_not_known_is_an_outcome():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(40, 4)
    data = [(x, net(x).argmin(1))]
    fisher = fs.estimate(net, data, progress=False)
    found = fs.percolation(net, fisher, data, orders=("fisher", "random"), **QUICK)
    assert set(found.thresholds["outcome"]) == {"no_better_than_uninformed"}
    assert found.thresholds["value"].isna().all()
    assert "no better than uninformed" in found.findings()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": ("fischer",)}, "orders="),
        ({"orders": "fisher"}, "orders="),
        ({"levels": ("neurone",)}, "levels="),
        ({"levels": ("head",)}, "level='head'"),
        ({"removal": "drop"}, "removal="),
        ({"norm": 0.0}, "norm="),
        ({"points": 2}, "points="),
        ({"fractions": (0.5, 1.5)}, r"fractions\[1\]=1.5 must be .* at least 0 and of at most 1"),
        ({"fractions": (-0.1,)}, r"fractions\[0\]=-0.1"),
        ({"fractions": (float("nan"),)}, r"fractions\[0\]=nan"),
        ({"fractions": ()}, "fractions=.* give one or several"),
        ({"fractions": 0.5}, "fractions=0.5: give one or several"),
        ({"repetitions": 0}, "repetitions="),
        ({"side": 1}, "side=1"),
        ({"candidates": 10_000}, "candidates=10000 are more than"),
    ],
)
def test_bad_options_are_named(options, message):
    net, data, fisher = trained()
    with pytest.raises(ParameterError, match=message):
        fs.percolation(net, fisher, data, **QUICK | options)


def test_fishers_that_do_not_fit_are_named():
    net, data, fisher = trained()
    with pytest.raises(ParameterError, match="order 'fisher' needs a Fisher"):
        fs.percolation(net, None, {"a": data}, **QUICK)
    with pytest.raises(TaskError, match="no data of it"):
        fs.percolation(net, {"b": fisher}, {"a": data}, **QUICK)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    with pytest.raises(IdentityError, match="other weights"):
        fs.percolation(other, fisher, data, **QUICK)
    free = fs.percolation(net, None, {"a": data}, orders=("magnitude", "random"), **QUICK)
    assert set(free.curves["by"]) == {""}

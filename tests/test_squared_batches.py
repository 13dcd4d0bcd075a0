"""``unit="batch"``: squared sums over batches of drawn labels, and how far to trust them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import fisherscope as fs
from oracles import brute, models, rows
from oracles.runs import estimate

OPTIONS = {"fisher_type": "mc", "unit": "batch", "batch_size": 3}


@cache
def case() -> models.Case:
    return models.Case(models.case("mlp").model, rows.points(12, (5,), classes=4), "classification")


# Would catch: a mean over the batch, a sum of squares, draws that meet before squaring, a share
# of the batch that is booked on single examples unevenly. Labels drawn as the seed draws them.
@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
@pytest.mark.parametrize("name", ["mlp", "layerscale", "tiny-gpt2", "tiny-lora"])
def test_the_sum_over_a_batch_is_squared_once(name, structure):
    case, draws = models.case(name), 2
    twin, data = brute.twin(name), case.rows[:3]
    fisher = estimate(case, data, structure=structure, draws=draws, seed=4, **OPTIONS)
    truth, totals = brute.zeros(twin), []
    for draw in range(draws):
        summed = brute.zeros(twin)
        for row in data:
            labels = brute.draw_labels(twin, row, case.likelihood, 4, draw)
            for score in brute.scores(twin, row, case.likelihood, "example", labels):
                for n, g in score.items():
                    summed[n] += g
        for n, g in summed.items():
            truth[n] += g.square()
        totals.append(sum(float(g.square().sum()) for g in summed.values()) / len(data))
    if structure == "grouped":
        truth = brute.rows_summed(case.model, truth)
    error, where = brute.worst(fisher.sums, truth, case.vanishes)
    assert error <= 1e-5, where
    trace = sum(float(t.sum()) for t in truth.values()) / draws
    assert fisher.ledger.squares.sum() == pytest.approx(trace, rel=1e-5)
    # Tensors move together: not the sum of their variances, but that of the sum.
    variance = fisher.ledger.draw_variance_total
    assert variance == pytest.approx(np.var(totals, ddof=1), rel=1e-3)
    assert np.ptp(fisher.ledger.squares, 0) == pytest.approx(0)


# Would catch: an estimator with a bias (cross terms that don't vanish in the mean), and both of
# its standard errors where examples of one batch are taken as independent: too small by the
# root of the batch size.
def test_it_is_unbiased_and_scatters_as_it_says():
    truth = sum(
        float(t.sum())
        for t in brute.type2(brute.twin("mlp"), case().rows, "classification").values()
    )
    found = [estimate(case(), case().rows, draws=4, seed=s, **OPTIONS) for s in range(60)]
    values = np.array([f.trace("sum") for f in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - truth) <= 3 * error and error < 0.05 * truth
    stated = [f.standard_error("sum", "draws") for f in found]
    for n in ("", "first.weight", "head.bias"):
        scatter = np.std([f.traces("sum")[n] if n else f.trace("sum") for f in found], ddof=1)
        mean = np.sqrt(np.mean([s[n] ** 2 for s in stated]))
        assert 0.75 < mean / scatter < 1.33, n


# Would catch: one row per example in the error over examples: twelve equal thirds of four
# numbers are four numbers.
def test_its_standard_error_is_that_of_the_groups():
    fisher = estimate(case(), case().rows, seed=1, **OPTIONS)
    assert len(set(fisher.ledger.groups.tolist())) == 4
    numbers = fisher.ledger.by_group(fisher.ledger.squares.sum(1))
    assert len(numbers) == 4
    by_hand = np.sqrt(4 / 3 * np.square(numbers - numbers.mean()).sum()) / 12
    assert fisher.standard_error()[""] == pytest.approx(by_hand)
    taken = fisher.ledger.take(fisher.ledger.ids[::-1])
    assert (taken.groups == fisher.ledger.groups).all()
    resampled = fisher.bootstrap(lambda t: t.sum(), n=2000)
    assert np.std(resampled) == pytest.approx(by_hand * np.sqrt(3 / 4), rel=0.1)


# Would catch: groups of two estimates that get one number, a file without the groups.
def test_groups_survive_addition_and_files(tmp_path):
    parts = [estimate(case(), case().rows[i : i + 6], **OPTIONS) for i in (0, 6)]
    joined = parts[0] + parts[1]
    assert len(set(joined.ledger.groups.tolist())) == 4
    joined.save(tmp_path / "joined")
    assert (fs.load(tmp_path / "joined").ledger.groups == joined.ledger.groups).all()
    one = joined.ledger.by_group(joined.ledger.squares).sum()
    assert one == pytest.approx(sum(p.trace("sum") for p in parts), rel=1e-6)


# Would catch: the square of a batch gradient of the data's labels passed off as a Fisher.
@pytest.mark.parametrize(
    "options",
    [{}, {"fisher_type": "type-2"}, {"fisher_type": "mc", "structure": "kfac"}],
)
def test_batches_of_data_labels_are_refused(options):
    with pytest.raises(fs.ParameterError, match="unit='batch'"):
        estimate(case(), case().rows, unit="batch", **options)


# Would catch: one bad example that spoils its batch, or stays in its square.
def test_a_batch_with_a_bad_example_is_squared_without_it():
    data = [
        rows.Row(r.id, {"0": r.inputs["0"] * float("nan")}, r.labels) if r.id == "row-1" else r
        for r in case().rows
    ]
    fisher = estimate(case(), data, on_nonfinite="skip", **OPTIONS)
    assert fisher.skipped == ("row-1",) and fisher.n_units == 11
    assert all(torch.isfinite(t).all() for t in fisher.sums.values())
    assert fisher.ledger.squares.sum() == pytest.approx(fisher.trace("sum"), rel=1e-6)

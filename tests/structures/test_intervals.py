import math

import numpy as np
import pytest
import torch

from fisherscope.errors import ParameterError
from fisherscope.structures.intervals import resamples
from structures.fishers import SHAPES, Scores, build, scores

IDS = tuple("abcdefghijkl")


def norms(of):
    columns = [s.flatten(2).sum(2).mean(1).numpy() for s in of.squares.values()]
    return np.stack([*columns, np.sum(columns, axis=0)])


def test_error_of_a_mean_per_example():
    # Catches: ddof=0, or the total's error as a root of summed squares (tensors of one
    # example are correlated).
    of = scores(IDS)
    errors = build(of).standard_error()
    expected = norms(of).std(1, ddof=1) / math.sqrt(12)
    assert list(errors) == [*SHAPES, ""]
    assert list(errors.values()) == pytest.approx(expected)
    totals = build(of).standard_error("sum")
    assert list(totals.values()) == pytest.approx(12 * expected)


def test_error_of_a_mean_per_token_against_the_jackknife():
    # Catches: treating the number of tokens as known. The jackknife is an independent way
    # to the error of a ratio; with 300 examples the two agree to a few percent, while the
    # naive error is too large by 6 to 27 % because long examples here have large scores.
    ids = tuple(str(i) for i in range(300))
    of = scores(ids)
    of = Scores(
        ids,
        {n: s * torch.tensor(of.tokens).reshape(-1, 1, *[1] * (s.dim() - 2))
         for n, s in of.squares.items()},
        of.tokens,
    )  # fmt: skip
    fisher = build(of, unit="token")
    x, m = norms(of), of.tokens
    left_out = (x.sum(1, keepdims=True) - x) / (m.sum() - m)
    jackknife = np.sqrt(299 / 300 * np.square(left_out - left_out.mean(1, keepdims=True)).sum(1))
    for per in ("token", "unit"):
        assert list(fisher.standard_error(per).values()) == pytest.approx(jackknife, rel=0.03)
    naive = math.sqrt(300) * x.std(1, ddof=1) / m.sum()
    assert (naive > 1.05 * jackknife).all()


def test_a_constant_ratio_has_no_error_per_token():
    # Catches: the plain error of a mean in place of the ratio's.
    one = torch.ones(5, 1, 2, dtype=torch.float64)
    tokens = np.array([1, 2, 3, 4, 5])
    of = Scores(tuple("abcde"), {"w": one * torch.tensor(tokens).reshape(5, 1, 1)}, tokens)
    fisher = build(of, unit="token")
    assert fisher.standard_error("token")["w"] == pytest.approx(0, abs=1e-12)
    assert fisher.standard_error("example")["w"] > 0.1


def test_one_example_has_no_error():
    # Catches: an error of zero from a single example.
    assert all(math.isnan(e) for e in build(scores("a")).standard_error().values())


@pytest.mark.parametrize("per", ["unit", "example", "sum"])
def test_error_over_draws_against_the_draws(per):
    # Catches: dividing by the draws once too often, and forgetting that one label moves
    # all tensors.
    of = scores(IDS, draws=4)
    fisher = build(of, fisher_type="mc")
    columns = [s.flatten(2).sum(2).numpy() for s in of.squares.values()]
    columns.append(np.sum(columns, axis=0))
    count = 1 if per == "sum" else 12
    expected = [math.sqrt((c.var(1, ddof=1) / 4).sum()) / count for c in columns]
    assert list(fisher.standard_error(per, "draws").values()) == pytest.approx(expected)


def test_the_total_over_draws_is_bounded_without_its_own_variance():
    # Catches: adding the tensors' variances, which is too small when labels move them
    # together.
    of = scores(IDS, draws=4)
    exact = build(of, fisher_type="mc").standard_error(source="draws")
    bound = build(of, fisher_type="mc", total_variance=False).standard_error(source="draws")
    assert {n: bound[n] for n in SHAPES} == {n: exact[n] for n in SHAPES}
    assert bound[""] >= exact[""]
    twins = Scores(IDS, {"v": of.squares["a.bias"], "w": of.squares["a.bias"]}, of.tokens)
    exact = build(twins, fisher_type="mc").standard_error(source="draws")
    bound = build(twins, fisher_type="mc", total_variance=False).standard_error(source="draws")
    assert bound[""] == pytest.approx(exact[""])


def test_sources_that_cannot_be_had_raise():
    # Catches: an error of zero where no label was drawn twice.
    with pytest.raises(ParameterError, match="draws of at least 2"):
        build(scores(IDS)).standard_error(source="draws")
    with pytest.raises(ParameterError, match="source='luck'"):
        build(scores(IDS)).standard_error(source="luck")  # pyright: ignore


@pytest.mark.parametrize("unit", ["example", "token"])
def test_bootstrap_agrees_with_the_standard_error(unit):
    # Catches: resampling tensors instead of examples, or means over the wrong count. The
    # bootstrap has N where the formula has N - 1; 2000 resamples leave 2 % of noise.
    ids = tuple(str(i) for i in range(80))
    fisher = build(scores(ids), unit=unit, dtype=torch.float64)
    values = fisher.bootstrap(lambda traces: [*traces, traces.sum()], n=2000, seed=3)
    assert values.shape == (2000, 4)
    errors = np.array(list(fisher.standard_error().values()))
    assert values.std(0) == pytest.approx(errors * math.sqrt(79 / 80), rel=0.08)
    centre = [*fisher.traces().values(), fisher.trace()]
    assert np.abs(values.mean(0) - centre).max() < (5 * errors / math.sqrt(2000)).max() + 0.01


def test_bootstrap_depends_on_the_seed_and_not_on_the_order_of_examples():
    # Catches: a global random state, and resampling in the order of batches.
    of = scores(IDS)
    shuffled = of.take([3, 1, 11, 0, 2, 9, 8, 7, 10, 6, 5, 4])
    one = build(of).bootstrap(np.sum, n=5)
    assert np.array_equal(one, build(shuffled).bootstrap(np.sum, n=5))
    assert np.array_equal(one, build(of).bootstrap(np.sum, n=5, seed=0))
    assert not np.array_equal(one, build(of).bootstrap(np.sum, n=5, seed=1))
    with pytest.raises(ParameterError, match="n=0"):
        build(of).bootstrap(np.sum, n=0)


def test_resampled_sums_are_means_times_the_count():
    # Planted: the factor between a mean and a sum left out.
    fisher = build(scores(IDS))
    means, sums = (fisher.bootstrap(np.sum, n=5, per=per) for per in ("example", "sum"))
    assert sums == pytest.approx(12 * means)


def test_resamples_are_the_draws_of_a_bootstrap():
    # Catches weights that are not counts, unequal chances, and draws that a shared generator
    # would give again.
    counts = resamples(7, 3, 20_000)
    assert counts.shape == (20_000, 7) and (counts.sum(1) == 7).all()
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.03)
    assert counts.var(0) == pytest.approx(np.full(7, 6 / 7), rel=0.05)
    whole = resamples(7, 3, 5, itself=True)
    assert (whole[0] == 1).all() and np.array_equal(whole[1:], counts[:5])
    rng = np.random.default_rng(3)
    assert np.array_equal(resamples(7, rng, 2), counts[:2])
    assert np.array_equal(resamples(7, rng, 1), counts[2:3])

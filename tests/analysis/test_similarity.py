import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.builders import draw, fisher_of
from fisherscope.analysis import similarity
from fisherscope.analysis.access import extents, flat
from fisherscope.analysis.agreement import Vector
from fisherscope.analysis.similarity import _floor, _limit
from fisherscope.errors import IdentityError, ParameterError

SHAPES = {"a": (30, 20), "b": (17,), "c": (9, 11), "s": ()}
METRICS = ["cosine", "pearson", "spearman", "jaccard", "bhattacharyya"]


def _vector(fisher):
    return np.concatenate([d.double().numpy().ravel() for d in fisher.diagonal().values()])


def _brute(x, y, k):
    """The five metrics by other means: scipy, sets, and the distance that the overlap is of."""
    tops = [set(sorted(range(len(v)), key=lambda i: (-v[i], i))[:k]) for v in (x, y)]
    distance = 0.5 * np.square(np.sqrt(x / x.sum()) - np.sqrt(y / y.sum())).sum()
    return {
        "cosine": math.fsum(x * y) / math.sqrt(math.fsum(x * x) * math.fsum(y * y)),
        "pearson": stats.pearsonr(x, y).statistic,
        "spearman": stats.spearmanr(x, y).statistic,
        "jaccard": len(tops[0] & tops[1]) / len(tops[0] | tops[1]),
        "bhattacharyya": 1 - distance,
    }


def _column(found, name):
    return dict(zip(found.to_frame()["metric"], found.to_frame()[name], strict=True))


def _pair(n=10, shapes=SHAPES, **options):
    return [
        fisher_of(draw(shapes, n, task=task), first_id=1000 * task, **options) for task in (0, 1)
    ]


def test_values_against_brute_force():
    # Would catch: a metric per tensor instead of over all, ranks without ties, the distance
    # returned for the overlap, float32 accumulation.
    a, b = _pair()
    found = similarity(a, b, k_fraction=0.05)
    expected = _brute(_vector(a), _vector(b), round(0.05 * a.n_parameters))
    for metric in METRICS:
        assert found.value(metric) == pytest.approx(expected[metric], rel=1e-6)
    assert (found.k, found.n) == (round(0.05 * a.n_parameters), a.n_parameters)
    assert found.outcome == "no_halves"


def test_sums_are_in_float64():
    # Would catch: dot products in float32, which are off by 1e-6 and more here.
    rng = np.random.default_rng(0)
    x, y = np.exp(rng.normal(0, 4, (2, 100_001))).astype(np.float32)
    found = similarity(*(fisher_of({"w": v[None]}) for v in (x, y)), permutations=0)
    expected = _brute(x.astype(np.float64), y.astype(np.float64), 1000)
    for metric in METRICS:
        assert found.value(metric) == pytest.approx(expected[metric], rel=1e-10, abs=1e-12)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 2.0, 4.0]), st.sampled_from([0.0, 1.0, 3.0])),
        min_size=3,
        max_size=30,
    ).filter(lambda rows: all(len(set(column)) > 1 for column in zip(*rows, strict=True))),
    st.sampled_from([0.1, 0.3, 1.0]),
)
def test_values_with_ties_and_zeros(rows, fraction):
    # Would catch: ties in the top set broken differently for the two, or a zero coordinate
    # among the largest.
    x, y = np.array(rows).T
    found = similarity(fisher_of({"w": x[None]}), fisher_of({"w": y[None]}), k_fraction=fraction)
    expected = _brute(x, y, max(1, round(fraction * len(x))))
    for metric in set(METRICS) - {"jaccard"}:
        assert found.value(metric) == pytest.approx(expected[metric], abs=1e-9)
    tops = []
    for v in (x, y):
        k = max(1, round(fraction * len(v)))
        tops.append({i for i in sorted(range(len(v)), key=lambda i: (-v[i], i))[:k] if v[i] > 0})
    assert found.value("jaccard") == pytest.approx(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))


def test_identical_and_scaled_tasks_reach_one():
    # Would catch: a metric that depends on the unit, or an identical task short of one.
    squares = draw(SHAPES, 10)
    a = fisher_of(squares)
    b = fisher_of({name: 7 * s for name, s in squares.items()}, first_id=100)
    for metric in METRICS:
        assert similarity(a, b).value(metric) == pytest.approx(1, abs=1e-6)


def test_disjoint_tasks():
    # Would catch: cosine and overlap that are not zero where nothing is shared.
    x = np.array([[1.0, 2.0, 0.0, 0.0]])
    found = similarity(fisher_of({"w": x}), fisher_of({"w": x[:, ::-1]}), k_fraction=0.5)
    assert [found.value(m) for m in ("cosine", "jaccard", "bhattacharyya")] == [0, 0, 0]
    assert found.value("spearman") == pytest.approx(-8 / 9)


def test_halves_and_ceiling():
    # Would catch: a ceiling between tasks, or from halves that share data with the whole.
    a, b = _pair(halves=True)
    found = similarity(a, b, k_fraction=0.05)
    k = found.k
    cross = [_brute(_vector(x), _vector(y), k) for x in a.halves for y in b.halves]
    within = [_brute(*map(_vector, task.halves), k) for task in (a, b)]
    for metric in METRICS:
        values = [c[metric] for c in cross]
        mean = np.mean(values)
        assert _column(found, "halves")[metric] == pytest.approx(mean, rel=1e-6, abs=1e-7)
        assert _column(found, "low")[metric] == pytest.approx(min(values), rel=1e-6, abs=1e-7)
        assert _column(found, "high")[metric] == pytest.approx(max(values), rel=1e-6, abs=1e-7)
        ceiling = np.mean([w[metric] for w in within])
        assert _column(found, "ceiling")[metric] == pytest.approx(ceiling, rel=1e-6, abs=1e-7)
    assert found.outcome == "ok"
    one = similarity(a, fisher_of(draw(SHAPES, 10, task=1)))
    assert one.outcome == "no_halves"
    assert one.to_frame()[["halves", "low", "high", "ceiling"]].isna().all(axis=None)


def test_same_task_reaches_the_ceiling():
    # Would catch: a ceiling that a second sample of the same task could not reach.
    squares = draw(SHAPES, 400)
    a = fisher_of({n: s[:200] for n, s in squares.items()}, halves=True)
    b = fisher_of({n: s[200:] for n, s in squares.items()}, halves=True, first_id=5000)
    found = similarity(a, b, k_fraction=0.05)
    for metric in ("cosine", "spearman", "bhattacharyya"):
        assert _column(found, "halves")[metric] == pytest.approx(
            _column(found, "ceiling")[metric], abs=0.02
        )
        assert found.value(metric) > _column(found, "halves")[metric]


def test_floor_has_the_exact_moments_of_permutations_within_tensors():
    # For sums of products the mean and variance over all permutations are known in closed
    # form; for the top sets they are hypergeometric.
    # Would catch: permuting across tensors, an unshuffled vector, offsets that are not
    # uniform, permutations of one another that move together.
    shapes = {"a": (30, 20), "b": (57,), "c": (9, 11)}
    squares = [draw(shapes, 3, task=task, sigma=0.7) for task in (0, 1)]
    for s in squares:
        s["b"] *= 20  # a tensor of larger scale in both: what the floor is there for
        # Order over the whole tensor, which has to be destroyed.
        s["a"] = np.sort(s["a"].reshape(3, -1)).reshape(3, 30, 20)
    squares[1]["c"] *= 20  # so that the top sets have different sizes within a tensor
    a, b = (fisher_of(s) for s in squares)
    # Several seeds, because permutations under one seed share their shuffle.
    vectors = [Vector(flat(f), 0.1) for f in (a, b)]
    places = list(extents(a).values())
    drawn = [f for seed in range(40) for f in _floor(*vectors, places, 50, seed)]
    means = {"cosine": 0.0, "spearman": 0.0, "bhattacharyya": 0.0, "jaccard": 0.0}
    variances = dict(means)
    forms = {
        "cosine": lambda v: v.values / v.norm,
        "spearman": lambda v: (v.ranks - v.mean_rank) / v.rank_spread,
        "bhattacharyya": lambda v: np.sqrt(v.values / v.total),
        "jaccard": lambda v: v.top.astype(float),
    }
    for metric, form in forms.items():
        x, y = (form(v).astype(np.float64) for v in vectors)
        for place in places:
            p, q = x[place], y[place]
            means[metric] += len(p) * p.mean() * q.mean()
            variances[metric] += p.var() * q.var() * len(p) ** 2 / (len(p) - 1)
    k = vectors[0].k
    for metric in forms:
        values = np.array([d[metric] for d in drawn])
        if metric == "jaccard":  # back from the ratio to the size of the intersection
            values = 2 * k * values / (1 + values)
        error = math.sqrt(variances[metric] / len(values))
        assert values.mean() == pytest.approx(means[metric], abs=4 * error), metric
        assert values.var() == pytest.approx(variances[metric], rel=0.2), metric
        # Permutations that move together would spread less under one seed than over seeds.
        within = values.reshape(40, 50).var(axis=1, ddof=1).mean()
        assert within == pytest.approx(variances[metric], rel=0.2), metric


def test_floor_sees_the_scale_of_tensors_and_pearson_follows_cosine():
    # Would catch: a floor near zero, which would make any two tasks look related.
    shapes = {"a": (40, 40), "b": (40, 40)}
    squares = [draw(shapes, 4, task=task, sigma=0.3) for task in (0, 1)]
    for s in squares:
        s["b"] *= 1000
    found = similarity(*(fisher_of(s) for s in squares), k_fraction=0.1)
    frame = found.to_frame().set_index("metric")
    assert (frame["floor"][["cosine", "pearson", "bhattacharyya"]] > 0.5).all()
    assert (frame["floor_high"] >= frame["floor"]).all()
    # Two unrelated tasks of equal scales are not above their floor.
    assert (frame["value"] < frame["floor"] + 0.1).all()


def test_related_tasks_exceed_the_floor():
    # Would catch: a floor that is not one, for instance from the unpermuted Fishers.
    squares = draw(SHAPES, 400)
    a = fisher_of({n: s[:200] for n, s in squares.items()})
    b = fisher_of({n: s[200:] for n, s in squares.items()})
    frame = similarity(a, b, k_fraction=0.05).to_frame()
    assert (frame["value"] > frame["floor_high"]).all()


def test_limit_is_exceeded_by_at_most_one_in_twenty():
    # The values are exchangeable, so the rank of a further one is uniform.
    # Would catch: an interpolated quantile, which 20 values exceed too often.
    for n in (19, 20, 39, 100):
        above = (n + 1 - np.searchsorted(np.arange(n), _limit(list(range(n))), "right")) / (n + 1)
        assert above <= 0.05
        assert above > 0.05 - 1 / (n + 1)
    assert math.isnan(_limit(list(range(18))))


def test_seed_decides_the_floor_and_only_the_floor():
    # Would catch: unseeded permutations; a value that depends on the seed.
    a, b = _pair()
    first, again, other = (similarity(a, b, seed=s).to_frame() for s in (0, 0, 1))
    assert first.equals(again)
    assert first["value"].equals(other["value"])
    assert not first["floor"].equals(other["floor"])
    none = similarity(a, b, permutations=0).to_frame()
    assert none[["floor", "floor_high"]].isna().all(axis=None)
    few = similarity(a, b, permutations=5).to_frame()
    assert few["floor"].notna().all()
    assert few["floor_high"].isna().all()


def test_swapping_the_tasks_changes_no_value():
    # Would catch: a metric that divides by one of the two.
    a, b = _pair(halves=True)
    columns = ["value", "halves", "low", "high", "ceiling"]
    one, two = similarity(a, b).to_frame()[columns], similarity(b, a).to_frame()[columns]
    np.testing.assert_allclose(one, two, rtol=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unit", "token"),
        ("fisher_type", "mc"),
        ("likelihood", "masked-lm"),
        ("structure", "grouped"),
        ("model_fingerprint", "other"),
    ],
)
def test_unlike_things_are_not_compared(field, value):
    # Would catch: Fishers of different meaning compared in silence.
    squares = draw(SHAPES, 4)
    with pytest.raises(IdentityError, match=field):
        similarity(fisher_of(squares), fisher_of(squares, **{field: value}))


def test_parameters_and_groups_must_match():
    a = fisher_of(draw({"w": (4, 4)}))
    with pytest.raises(IdentityError, match=r"'w' is \(4, 4\) and \(4, 5\)"):
        similarity(a, fisher_of(draw({"w": (4, 5)})))
    rows = fisher_of(draw({"w": (4, 4)}), structure="grouped")
    columns = fisher_of(draw({"w": (4, 4)}), structure="grouped")
    columns.sums["w"] = columns.sums["w"].T
    with pytest.raises(IdentityError, match=r"grouped as \(4, 1\) and \(1, 4\)"):
        similarity(rows, columns)


def test_what_may_differ():
    # Would catch: data, seed or draws refused, which two tasks may well differ in.
    squares = draw(SHAPES, 4)
    other = fisher_of(squares, model_fingerprint="tuned", data_fingerprint="1", seed=3, draws=2)
    with pytest.raises(IdentityError, match="model_fingerprint"):
        similarity(fisher_of(squares), other)
    found = similarity(fisher_of(squares), other, across_models=True)
    assert found.value("cosine") == pytest.approx(1)


def test_groups_are_compared_by_their_sums():
    # Would catch: single elements demanded, or groups divided by their size.
    a, b = _pair(structure="grouped")
    x, y = (np.concatenate([g.numpy() for g in f.groups().values()]) for f in (a, b))
    expected = stats.spearmanr(x, y).statistic
    assert similarity(a, b).value("spearman") == pytest.approx(expected)
    assert similarity(a, b).n == len(x)


def test_a_zero_fisher_is_an_outcome():
    # Would catch: a division by zero, or zero over zero reported as no similarity.
    zero = fisher_of({"w": np.zeros((3, 5))})
    found = similarity(zero, fisher_of(draw({"w": (5,)}, 3)))
    assert found.outcome == "zero_fisher"
    assert found.to_frame()["value"].isna().sum() >= 4


def test_bad_options_are_named():
    a, b = _pair()
    with pytest.raises(ParameterError, match="k_fraction=0"):
        similarity(a, b, k_fraction=0)
    with pytest.raises(ParameterError, match="permutations=-1"):
        similarity(a, b, permutations=-1)
    with pytest.raises(ParameterError, match="metric='euclid'"):
        similarity(a, b).value("euclid")

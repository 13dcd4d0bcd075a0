import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.builders import draw, fisher_of, like, model
from fisherscope.analysis import masks, overlap
from fisherscope.errors import IdentityError, ParameterError

SHAPES = {"model.layers.0.fc.weight": (6, 5), "model.layers.1.fc.weight": (7, 3)}


def _removed(found):
    return sum(int((~m).sum()) for m in found.values())


@settings(deadline=None)
@given(
    st.floats(0, 1),
    st.sampled_from(["global", "tensor"]),
    st.sampled_from([2, 1000]),
    st.integers(0, 5),
)
def test_exactly_the_asked_number_is_removed(sparsity, scope, values, seed):
    # Would catch: a quantile that removes all tied values or none of them.
    rng = np.random.default_rng(seed)
    squares = {n: rng.integers(0, values, (1, *s)).astype(float) for n, s in SHAPES.items()}
    found = masks(fisher_of(squares), sparsity, scope=scope)
    parts = [[*SHAPES]] if scope == "global" else [[name] for name in SHAPES]
    for names in parts:
        n = sum(found[name].numel() for name in names)
        assert _removed({name: found[name] for name in names}) == round(sparsity * n)
        kept = np.concatenate([squares[name][0][found[name].numpy()] for name in names])
        gone = np.concatenate([squares[name][0][~found[name].numpy()] for name in names])
        assert not (len(kept) and len(gone)) or kept.min() >= gone.max()


def test_ties_keep_the_lower_index():
    # Would catch: a choice among ties that changes from run to run.
    found = masks(fisher_of({"x.weight": np.ones((1, 2, 3)), "y.weight": np.ones((1, 2, 2))}), 0.5)
    assert found["x.weight"].tolist() == [[True, True, True], [True, True, False]]
    assert not found["y.weight"].any()


@pytest.mark.parametrize("method", ["fisher", "obd", "magnitude"])
def test_scores_against_brute_force(method):
    # Would catch: obd without the square, magnitude with the sign, one method for another.
    m = model("llama")
    fisher = fisher_of(like(m))
    found = masks(fisher, 0.7, model=m, method=method)
    theta = {n: p.detach().double().numpy() for n, p in m.named_parameters()}
    f = {n: d.double().numpy() for n, d in fisher.diagonal().items()}
    score = {
        n: {"fisher": f[n], "obd": f[n] * theta[n] ** 2, "magnitude": abs(theta[n])}[method]
        for n in found
    }
    everything = np.sort(np.concatenate([s.ravel() for s in score.values()]))
    threshold = everything[round(0.7 * len(everything))]
    for name, mask in found.items():
        np.testing.assert_array_equal(mask.numpy(), score[name] >= threshold)


def test_default_protection():
    # Would catch: a pruned embedding, norm, bias or output head, each of which wrecks a model.
    for family in ("gpt2", "llama", "gpt_neox", "opt", "bert", "vit", "t5", "resnet"):
        m = model(family)
        found = masks(fisher_of(like(m, 1)), 0.5)
        outside = {
            name
            for path, module in m.named_modules()
            for name in [f"{path}.weight", f"{path}.bias"]
            if isinstance(module, torch.nn.Embedding) or module is m.get_output_embeddings()
        }
        assert not outside & {n for n in found if "relative" not in n}
        assert all(mask.dim() > 1 for mask in found.values())
        linear = {n for n, p in m.named_parameters() if ".layers." in n and p.dim() > 1}
        assert linear <= set(found)


def test_patterns_protect_instead_or_besides():
    # Would catch: a pattern that is a substring match, so layer 1 protects layer 10.
    shapes = {f"model.layers.{i}.fc.weight": (2, 2) for i in (1, 10)} | {"lm_head.weight": (2, 2)}
    fisher = fisher_of(draw(shapes))
    first, tenth, head = shapes
    assert list(masks(fisher, 0.5, protect=None)) == [first, tenth, head]
    assert list(masks(fisher, 0.5)) == [first, tenth]
    assert list(masks(fisher, 0.5, protect="model.layers.1.*")) == [tenth, head]
    assert list(masks(fisher, 0.5, protect=["default", "*.10.*"])) == [first]
    with pytest.raises(ParameterError, match="'layers.1' matches none of the 3"):
        masks(fisher, 0.5, protect="layers.1")
    with pytest.raises(ParameterError, match=r"'\*\.11\.\*' matches none of the 3"):
        masks(fisher, 0.5, protect=["default", "*.11.*"])
    with pytest.raises(ParameterError, match="all 3 tensors are protected"):
        masks(fisher, 0.5, protect="*")


def test_random_depends_on_seed_and_name_alone():
    # Would catch: a stream, under which a tensor's mask depends on the tensors before it.
    fisher = fisher_of(draw(SHAPES))
    one = masks(fisher, 0.5, method="random", scope="tensor")
    last = dict([list(SHAPES.items())[1]])
    alone = masks(fisher_of(draw(last)), 0.5, method="random", scope="tensor")
    name = next(iter(alone))
    assert torch.equal(one[name], alone[name])
    other = masks(fisher, 0.5, method="random", scope="tensor", seed=1)
    assert not torch.equal(one[name], other[name])
    # Would catch: the same stream begun anew for every tensor.
    twins = fisher_of(draw({"x.weight": (8, 8), "y.weight": (8, 8)}))
    found = masks(twins, 0.5, method="random", scope="tensor")
    assert not torch.equal(found["x.weight"], found["y.weight"])


def test_grouped_fishers_have_no_scores_of_single_weights():
    fisher = fisher_of(draw(SHAPES), structure="grouped")
    with pytest.raises(ParameterError, match='structure="diagonal"'):
        masks(fisher, 0.5)
    assert masks(fisher, 0.5, method="random").keys() == SHAPES.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.5}, "sparsity=1.5"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"method": "hessian"}, "method='hessian'"),
        ({"scope": "layer"}, "scope='layer'"),
        ({"structure": "head"}, "structure='head'"),
        ({"method": "obd"}, "pass model="),
        ({"method": "magnitude"}, "pass model="),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ParameterError, match=message):
        masks(fisher_of(draw(SHAPES)), **{"sparsity": 0.5, **options})


def _mask(*bits):
    return torch.tensor(bits, dtype=torch.bool)


def test_overlap_of_known_masks():
    # Would catch: overlap over all elements (identical masks would give their density), or
    # over the removed set.
    a = {"x": _mask(1, 1, 0, 0), "y": _mask(1, 0)}
    b = {"x": _mask(1, 0, 1, 1), "y": _mask(1, 0)}
    found = overlap(a, b)
    assert (found.n, found.kept_a, found.kept_b, found.both) == (6, 3, 4, 2)
    assert found.jaccard == pytest.approx(2 / 5)
    assert found.smaller == pytest.approx(2 / 3)
    assert found.smaller_chance == pytest.approx(4 / 6)
    frame = found.to_frame().set_index("tensor")
    assert frame["jaccard"].to_dict() == {"x": 1 / 4, "y": 1.0}
    assert found.excess == pytest.approx(found.jaccard - found.chance)
    same = overlap(a, a)
    assert (same.jaccard, same.smaller) == (1, 1)
    opposite = overlap(a, {name: ~mask for name, mask in a.items()})
    assert (opposite.jaccard, opposite.smaller) == (0, 0)


@settings(deadline=None)
@given(st.integers(1, 7), st.data())
def test_chance_against_all_pairs_of_subsets(n, data):
    # Would catch: a ratio of expectations given for the expectation of the ratio.
    ka, kb = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    a = set(range(ka))
    pairs = [(a, set(c)) for c in itertools.combinations(range(n), kb)]
    found = overlap({"x": torch.arange(n) < ka}, {"x": torch.arange(n) < kb})
    if not ka + kb:
        assert np.isnan(found.chance)
        return
    assert found.chance == pytest.approx(np.mean([len(p & q) / len(p | q) for p, q in pairs]))
    assert found.chance_within == pytest.approx(found.chance)
    if min(ka, kb):
        expected = np.mean([len(p & q) / min(ka, kb) for p, q in pairs])
        assert found.smaller_chance == pytest.approx(expected)


def test_chance_within_tensors_against_permutations():
    # Would catch: agreement on which tensors to keep counted as agreement on parameters.
    rng = np.random.default_rng(0)
    sizes, rates = {"x": 300, "y": 200}, {"x": (0.9, 0.8), "y": (0.05, 0.1)}
    pair = [
        {n: torch.from_numpy(rng.random(s) < rates[n][t]) for n, s in sizes.items()} for t in (0, 1)
    ]
    found = overlap(*pair)
    shuffled = [
        overlap({n: m[rng.permutation(len(m)).tolist()] for n, m in pair[0].items()}, pair[1])
        for _ in range(200)
    ]
    values = [s.jaccard for s in shuffled]
    error = np.std(values) / np.sqrt(len(values))
    assert found.chance_within == pytest.approx(np.mean(values), abs=4 * error)
    assert found.chance < found.chance_within - 0.2


def test_chance_of_large_masks():
    # Would catch: factorials that overflow, or a sum over millions of terms.
    n = 4_000_000
    half = torch.arange(n) < n // 2
    found = overlap({"x": half}, {"x": half.roll(n // 4)})
    assert found.chance == pytest.approx(1 / 3, abs=1e-6)
    assert found.jaccard == pytest.approx(1 / 3)


def test_nothing_kept_has_no_ratio():
    found = overlap({"x": _mask(0, 0)}, {"x": _mask(0, 0)})
    assert np.isnan([found.jaccard, found.smaller, found.chance, found.excess]).all()
    none = overlap({"x": _mask(0, 0)}, {"x": _mask(1, 0)})
    assert none.jaccard == 0
    assert np.isnan(none.smaller)


def test_unlike_masks_are_not_compared():
    with pytest.raises(IdentityError, match="'y'"):
        overlap({"x": _mask(1), "y": _mask(1)}, {"x": _mask(1)})
    with pytest.raises(IdentityError, match="'x'"):
        overlap({"x": _mask(1)}, {"x": _mask(1, 0)})
    with pytest.raises(ParameterError, match="boolean"):
        overlap({"x": torch.ones(2)}, {"x": torch.ones(2)})
    with pytest.raises(ParameterError, match="no masks"):
        overlap({}, {})

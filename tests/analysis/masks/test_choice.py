import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.builders import draw, fisher_of, like, model
from fisherscope.analysis import masks
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.errors import ParameterError
from structures.matrices import explicit, make

SHAPES = {"model.layers.0.fc.weight": (6, 5), "model.layers.1.fc.weight": (7, 3)}


def _removed(found):
    return sum(int((~m).sum()) for m in found.values())


@settings(deadline=None)
@given(
    st.floats(0, 1, exclude_max=True),
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
    fisher = fisher_of(like(m), model_fingerprint=model_fingerprint(m))
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


@pytest.mark.parametrize("structure", ["kfac mixed", "ekfac transposed", "block", "dense"])
def test_block_structures_are_read_through_their_diagonal(structure):
    # Would catch: a structure's own numbers (factors, eigenvalues) taken for parameters' scores.
    fisher = make(structure)
    found = masks(fisher, 0.5, protect=None)
    diagonal = np.diag(explicit(fisher))
    kept = np.concatenate([found[name].numpy().ravel() for name in fisher.identity.parameters])
    assert kept.sum() == len(kept) - round(len(kept) / 2)
    assert diagonal[kept].min() >= diagonal[~kept].max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.5}, "sparsity=1.5"),
        # Would catch: masks that remove everything.
        ({"sparsity": 1}, "sparsity=1 must be a finite number of at least 0 and below 1"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"method": "hessian"}, "method='hessian'"),
        ({"scope": "layer"}, "scope='layer'"),
        ({"structure": "layer"}, "structure='layer'"),
        ({"structure": "head"}, "pass model="),
        ({"structure": "2:4"}, "pass model="),
        ({"structure": "2:4", "sparsity": 0.6}, "sparsity=0.6.*pass 0.5"),
        ({"method": "obd"}, "pass model="),
        ({"method": "magnitude"}, "pass model="),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ParameterError, match=message):
        masks(fisher_of(draw(SHAPES)), **{"sparsity": 0.5, **options})

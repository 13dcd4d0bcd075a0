import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from analysis.builders import draw, fisher_of, like, model
from fisherscope.analysis.access import doubled_ranks, extents, flat, order, top, weights
from fisherscope.errors import NonFiniteError, ParameterError

# Few distinct values, so that ties are everywhere, and both float types, which take
# different ways.
vectors = st.tuples(
    st.lists(st.sampled_from([0.0, 1e-40, 1e-30, 0.5, 1.0, 3e38]), min_size=1, max_size=40),
    st.sampled_from([np.float32, np.float64]),
).map(lambda drawn: np.array(drawn[0], dtype=drawn[1]))


@settings(deadline=None)
@given(vectors)
def test_order_is_descending_with_ties_by_index(values):
    # Would catch: an unstable sort, ties by descending index, float bits in the wrong order.
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert order(values).tolist() == expected


@settings(deadline=None)
@given(vectors, st.data())
def test_top_takes_exactly_k_and_of_ties_the_first(values, data):
    # Would catch: all or none of the tied values taken, so that k is missed.
    k = data.draw(st.integers(0, len(values)))
    assert np.flatnonzero(top(values, k)).tolist() == sorted(order(values)[:k].tolist())


@settings(deadline=None)
@given(vectors)
def test_ranks_are_scipys(values):
    # Would catch: ties ranked by position, which depends on the order of parameters.
    assert (doubled_ranks(values) == 2 * rankdata(values)).all()


def test_negative_zero_sorts_like_zero():
    # Would catch: the sign bit of -0.0 taken for a huge value.
    values = np.array([-0.0, 1.0, 0.0], dtype=np.float32)
    assert order(values).tolist() == [1, 0, 2]
    assert doubled_ranks(values).tolist() == [3, 6, 3]


def test_flat_follows_the_models_order():
    # Would catch: tensors in the order of the sums dictionary instead of the identity's.
    fisher = fisher_of(draw({"b": (2, 3), "a": (4,)}))
    object.__setattr__(fisher, "sums", dict(reversed(fisher.sums.items())))
    assert list(extents(fisher)) == ["b", "a"]
    for name, place in extents(fisher).items():
        assert (flat(fisher)[place] == fisher.sums[name].numpy().ravel()).all()


def test_weights_must_be_those_of_the_fisher():
    # Would catch: weights of another model used in silence.
    m = model("llama")
    fisher = fisher_of(like(m))
    found = weights(fisher, m, "x")
    assert all(torch.equal(found[name], p) for name, p in m.named_parameters())
    with pytest.raises(ParameterError, match="x needs the weights: pass model="):
        weights(fisher, None, "x")
    with pytest.raises(ParameterError, match=r"'model\.embed_tokens\.weight' \(absent"):
        weights(fisher, model("gpt2"), "x")
    with pytest.raises(ParameterError, match=r"k_proj.* \(shape \(4, 16\), expected \(8, 16"):
        weights(fisher, model("qwen2"), "x")


def test_weights_that_are_not_finite_are_named():
    # Would catch: NaN scores sorted to an arbitrary end.
    m = torch.nn.Linear(2, 2)
    fisher = fisher_of(like(m))
    with torch.no_grad():
        m.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="'bias'"):
        weights(fisher, m, "x")

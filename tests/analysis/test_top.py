import numpy as np
import pytest

from analysis.builders import draw, fisher_of
from fisherscope.analysis import top_coordinates
from fisherscope.errors import ParameterError

SHAPES = {"a": (4, 5), "b": (3,), "c": (2, 3, 2)}


def _brute(fisher, k, names):
    rows = [
        (-float(value), order, position)
        for order, name in enumerate(names)
        for position, value in np.ndenumerate(fisher.diagonal()[name].numpy())
    ]
    return [(list(names)[order], position, -value) for value, order, position in sorted(rows)[:k]]


def test_global_top_is_over_all_tensors():
    # Would catch: k of every tensor instead of k in all, positions in the wrong order.
    fisher = fisher_of(draw(SHAPES))
    found = top_coordinates(fisher, k=9)
    frame = found.to_frame()
    rows = list(zip(frame["tensor"], frame["position"], frame["value"], strict=True))
    expected = _brute(fisher, 9, SHAPES)
    assert [r[:2] for r in rows] == [e[:2] for e in expected]
    assert frame["value"].tolist() == pytest.approx([e[2] for e in expected])
    assert found.mass == pytest.approx(frame["value"].sum() / fisher.trace())
    for name, index in found.indices.items():
        flat = [np.ravel_multi_index(p, SHAPES[name]) for t, p, _ in expected if t == name]
        assert index.tolist() == sorted(flat)


def test_top_of_each_tensor():
    # Would catch: a fraction of the whole model taken from a small tensor.
    fisher = fisher_of(draw(SHAPES))
    frame = top_coordinates(fisher, fraction=0.25, scope="tensor").to_frame()
    assert frame["tensor"].value_counts().to_dict() == {"a": 5, "b": 1, "c": 3}
    for name in SHAPES:
        mine = frame[frame["tensor"] == name]
        expected = _brute(fisher, len(mine), [name])
        assert mine["position"].tolist() == [e[1] for e in expected]


def test_ties_go_to_the_lower_index():
    # Would catch: a choice that changes from run to run or misses k.
    fisher = fisher_of({"a": np.ones((2, 2, 3)), "b": np.ones((2, 4))})
    frame = top_coordinates(fisher, k=8).to_frame()
    assert frame["tensor"].tolist() == ["a"] * 6 + ["b"] * 2
    assert frame["index"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


def test_agreement_of_halves():
    # Would catch: agreement of the whole with a half, which share data.
    fisher = fisher_of(draw(SHAPES, n=6), halves=True)
    assert top_coordinates(fisher_of(draw(SHAPES)), k=3).agreement is None
    sets = [{e[:2] for e in _brute(h, 7, SHAPES)} for h in fisher.halves]
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert 0 < expected < 1
    assert top_coordinates(fisher, k=7).agreement == pytest.approx(expected)


def test_groups_and_scalars_are_coordinates_too():
    # Would catch: a group's number unravelled in the parameter's shape.
    fisher = fisher_of(draw({"a": (4, 5), "s": ()}), structure="grouped")
    frame = top_coordinates(fisher, k=5).to_frame()
    assert set(frame["position"]) == {(0,), (1,), (2,), (3,), ()}
    values = [*fisher.groups()["a"].tolist(), *fisher.groups()["s"].tolist()]
    assert frame["value"].tolist() == pytest.approx(sorted(values, reverse=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of k and fraction"),
        ({"k": 1, "fraction": 0.1}, "exactly one of k and fraction"),
        ({"k": 0}, "k=0 must be a whole number between 1 and 35"),
        ({"k": 36}, "k=36 must be a whole number between 1 and 35"),
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"k": 1, "scope": "layer"}, "scope='layer' is unknown"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ParameterError, match=message):
        top_coordinates(fisher_of(draw(SHAPES)), **options)

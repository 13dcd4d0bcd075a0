import itertools

import numpy as np
import pytest
import torch
from torch import nn

from analysis.builders import fisher_of, like, model
from fisherscope.analysis import masks
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.errors import ParameterError


def _matrix(m, name, values):
    """In rows of inputs, whatever the storage."""
    module = m.get_submodule(name.rpartition(".")[0])
    return values if isinstance(module, nn.Linear) else values.T


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert_classifier"])
@pytest.mark.parametrize("method", ["fisher", "obd", "magnitude"])
def test_the_best_two_of_each_four_inputs_stay(family, method):
    # Would catch: fours along the outputs (Conv1D), or four rows; the worst two kept. The oracle
    # tries all six choices.
    m = model(family)
    fisher = fisher_of(like(m, 1), model_fingerprint=model_fingerprint(m))
    found = masks(fisher, 0.5, model=m, structure="2:4", method=method)
    assert set(found) == set(masks(fisher, 0.5, model=m))
    for name, mask in found.items():
        f, theta = fisher.diagonal()[name], m.get_parameter(name).detach()
        score = {"fisher": f, "obd": f * theta**2, "magnitude": theta.abs()}[method]
        score, kept = _matrix(m, name, score), _matrix(m, name, mask)
        for row, keeps in zip(score.numpy(), kept.numpy(), strict=True):
            for start in range(0, len(row), 4):
                four = row[start : start + 4]
                best = max(itertools.combinations(range(4), 2), key=lambda c: sum(four[list(c)]))
                assert np.flatnonzero(keeps[start : start + 4]).tolist() == list(best)


def test_ties_keep_the_lower_index():
    # Would catch: a choice among ties that is left to the sort.
    m = nn.Sequential(nn.Linear(8, 3))
    ones = {n: np.ones((1, *p.shape)) for n, p in m.named_parameters()}
    found = masks(fisher_of(ones), 0.5, model=m, structure="2:4")
    assert found["0.weight"].tolist() == [[True, True, False, False] * 2] * 3
    assert list(found) == ["0.weight"]
    random = masks(fisher_of(ones), 0.5, model=m, structure="2:4", method="random")
    assert (random["0.weight"].reshape(3, 2, 4).sum(-1) == 2).all()
    assert not torch.equal(random["0.weight"], found["0.weight"])


def test_matrices_without_fours_of_inputs_are_named():
    # Would catch: a last group of fewer than four, a convolution taken for a matrix.
    m = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    fisher = fisher_of(like(m, 1))
    with pytest.raises(ParameterError, match="'0.weight'.*6 inputs, no multiple of four.*protect="):
        masks(fisher, 0.5, model=m, structure="2:4")
    found = masks(fisher, 0.5, model=m, structure="2:4", protect=["default", "0.weight"])
    assert list(found) == ["1.weight"]
    images = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(ParameterError, match="'0.weight'.*not the weight of a linear layer"):
        masks(fisher_of(like(images, 1)), 0.5, model=images, structure="2:4")

"""Covariances of outputs against the dense ``J P⁻¹ Jᵀ`` with the Jacobian from autograd."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

import fisherscope as fs
from fisherscope.analysis.uncertainty.jacobian import covariances
from fisherscope.analysis.uncertainty.posterior import Posterior
from fisherscope.analysis.uncertainty.rows import Question, Rows, ask
from oracles import brute, matrix, models, rows

# Of the last layer its output projection, and the embedding that is the head as well.
SOME = re.compile(
    r"1\.(attn\.c_proj|self_attn\.o_proj|attention\.output\.dense)"
    r"|wte|embed_tokens|word_embeddings"
)
STRUCTURES = ("diagonal", "grouped", "kfac", "ekfac", "block", "dense")


def estimate(name: str, structure: str, **options) -> fs.Fisher:
    case = models.case(name)
    return fs.estimate(
        case.model,
        rows.examples(case.rows),
        structure=structure,
        fisher_type="mc",
        progress=False,
        **options,
    )


def jacobian(name: str, data: list[rows.Row], answer: Rows, keep: set[str]) -> list[Tensor]:
    """One [outputs, parameters] matrix per row, in float64, through the logits alone."""
    case, twin = models.case(name), brute.twin(name)
    own = {n: p for n, p in brute.parameters(twin).items() if n in keep}
    found = []
    for number, row in enumerate(data):
        out = brute.outputs(twin, row)
        at, _ = brute.supervised(row, case.likelihood)
        tokens = out[at] if case.likelihood.endswith("lm") else out.reshape(1, -1)
        mine = np.flatnonzero(answer.example == number)
        assert len(mine) == len(tokens)
        for place, token in zip(mine, tokens, strict=True):
            classes = torch.from_numpy(answer.classes[place])
            values = list(token[classes])
            if answer.pooled:
                others = torch.ones(len(token), dtype=torch.bool)
                others[classes] = False
                values.append(token[others].logsumexp(0))
            np.testing.assert_allclose(
                answer.outputs[place], [float(v.detach()) for v in values], rtol=1e-4, atol=1e-4
            )
            lines = [brute.gradients(v, list(own.values())) for v in values]
            found.append(torch.stack([matrix.flat(dict(enumerate(one))) for one in lines]))
    return found


def explicit(posterior: Posterior, j: Tensor) -> np.ndarray:
    """``J P⁻¹ Jᵀ`` with P made whole."""
    p = posterior.observations / posterior.temperature * posterior.fisher.dense()
    p = p + posterior.prior_precision * torch.eye(len(p), dtype=torch.float64)
    return (j @ torch.linalg.solve(p, j.T)).numpy()


def check(name: str, data: list[rows.Row], fisher: fs.Fisher, question: Question) -> None:
    answer = question.answer()
    several = [Posterior(fisher, fisher.n_units, delta, 1.5) for delta in (0.8, 30.0)]
    found = covariances(question, answer, several)
    j = jacobian(name, data, answer, set(fisher.identity.parameters))
    size = question.width
    for mine, posterior in zip(found, several, strict=True):
        whole = explicit(posterior, torch.cat(j))
        for n in range(len(j)):
            expected = whole[n * size : (n + 1) * size, n * size : (n + 1) * size]
            assert abs(mine[n] - expected).max() <= 2e-4 * abs(expected).max()


# Would catch: a diagonal taken for the whole block, blocks' cross terms between weight and bias
# lost, classes mixed up, the temperature or N forgotten, a batch row that reads another's gradient.
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["mlp", "mlp-regression", "layerscale"])
def test_classifier_and_regression(name, structure):
    case, fisher = models.case(name), estimate(name, structure)
    check(name, case.rows, fisher, ask(case.model, fisher, rows.examples(case.rows), None, None))


# Would catch: logits of the wrong position (the shift), a pooled class without its own softmax
# weights, the uses of a tied head and embedding apart, padding that carries gradient, sets of
# labels cut apart at the wrong place.
@pytest.mark.parametrize("structure", ["diagonal", "kfac", "block"])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "bert-mlm"])
def test_language_models_with_padding(name, structure):
    case = models.case(name)
    fisher = estimate(name, structure, parameters=SOME)
    data = case.rows[:3]
    batch = rows.padded(data, left=name == "gpt2", extra=2)
    check(name, data, fisher, ask(case.model, fisher, batch, 2, None))


# Would catch: a model that is only right one example at a time, and an answer that depends on
# the batch or the order of the examples.
@pytest.mark.parametrize("name", ["mlp", "llama-classifier-unpadded"])
def test_batches_make_no_difference(name):
    case, fisher = models.case(name), estimate(name, "kfac")
    data = rows.examples(case.rows)
    posterior = Posterior(fisher, fisher.n_units, 0.8, 1.0)
    first = ask(case.model, fisher, data, None, None)
    other = ask(case.model, fisher, data[::-1], None, 1)
    mine = covariances(first, first.answer(), [posterior])[0]
    theirs = covariances(other, other.answer(), [posterior])[0]
    np.testing.assert_allclose(mine, theirs[::-1], rtol=2e-4, atol=1e-6 * abs(mine).max())
    assert other.answer().ids == tuple(e.id for e in data[::-1])

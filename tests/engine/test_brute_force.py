"""Every architecture against brute force in float64, at 1e-5 for every parameter tensor.

The bound holds for the Frobenius norm of the difference relative to that of the truth.
Where a score vanishes in theory (the bias of attention keys) only rounding errors are
left: there the bound is 1e-10 of the largest tensor's norm (see ``brute.errors``).
"""

from __future__ import annotations

import numpy as np
import pytest

import fisherscope as fs
from oracles import brute, models, rows
from oracles.checks import BOUND, check, check_ledger, compare, vanishes

UNITS = ("example", "token", "position")
REQUIRED = (
    *("gpt2", "llama-tied", "llama-untied", "qwen2-tied", "qwen2-untied", "gpt-neox", "opt"),
    *("bert", "bert-mlm", "albert", "albert-mlm"),
)


# Would catch: anything wrong in a layer's formula; a tied head or a reused layer squared use
# by use; GPT-2's position table summed over the batch before squaring; prompts or holes
# scored; logits off by one; a token unit that is the example's; a likelihood that "auto"
# gets wrong; a model that silently goes down the slow path.
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", models.NAMES)
def test_each_unit_on_every_architecture(name, unit):
    case = models.case(name)
    fisher = fs.estimate(case.model, rows.examples(case.rows), unit=unit, progress=False)
    check(fisher, name)
    if unit != "position":
        check_ledger(fisher, name)
    assert fisher.identity.likelihood == case.likelihood
    tokens = {row.id: len(brute.supervised(row, case.likelihood)[0]) for row in case.rows}
    assert dict(zip(fisher.ledger.ids, fisher.ledger.tokens, strict=True)) == tokens
    assert fisher.n_units == (len(case.rows) if unit == "example" else sum(tokens.values()))


# Would catch: left padding shifting positions, padding tokens looked up, padded labels
# scored, a batch of unlike lengths differing from its rows alone.
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("layout", rows.LAYOUTS)
@pytest.mark.parametrize("name", REQUIRED)
def test_padding_on_either_side_or_none(name, layout, unit):
    case = models.case(name)
    data = rows.LAYOUTS[layout](case.rows)
    check(fs.estimate(case.model, data, unit=unit, batch_size=3, progress=False), name)


# Would catch: row sums by the Gram matrix that leave out cross terms of positions; GPT-2's
# weights grouped by inputs; groups of a tied table that miss the head; a norm with several
# dimensions.
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", models.NAMES)
def test_grouped_is_the_diagonal_summed_over_inputs(name, unit):
    case = models.case(name)
    data = rows.examples(case.rows)
    check(fs.estimate(case.model, data, structure="grouped", unit=unit, progress=False), name)


# Would catch: labels drawn from a stream, from padded or shifted logits, or once for all
# draws; a slow path that draws its own; Gaussian noise of the wrong scale.
@pytest.mark.parametrize("name", models.NAMES)
def test_mc_with_a_seed_scores_the_labels_that_the_seed_draws(name):
    case = models.case(name)
    options = {"fisher_type": "mc", "draws": 2, "seed": 7, "progress": False}
    fisher = fs.estimate(case.model, rows.examples(case.rows), **options)
    expected, norms = brute.mc(brute.twin(name), case.rows, case.likelihood, seed=7, draws=2)
    compare(fisher.sums, expected, vanishes(case))
    place = [fisher.ledger.ids.index(row.id) for row in case.rows]
    columns = [*fisher.ledger.draw_variance[place].T, fisher.ledger.draw_variance_total[place]]
    truths = [*norms.values(), sum(norms.values())]
    for tensor, found, truth in zip([*norms, "all"], columns, truths, strict=True):
        if not case.vanishes(tensor):
            difference = np.sqrt(found) - truth.std(1, unbiased=True).numpy()
            size = np.linalg.norm(truth.mean(1).numpy())
            assert np.linalg.norm(difference) <= BOUND * size, tensor

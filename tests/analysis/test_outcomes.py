from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fisherscope.analysis import outcomes as module
from fisherscope.analysis.outcomes import outcomes
from fisherscope.data import batches
from fisherscope.engine.displace import displaced
from fisherscope.recognition import resolve
from oracles import brute, models, rows

NAMES = ("gpt2", "llama-tied", "bert-mlm", "resnet", "mlp-regression")


def run(name, states=None, batch_size=None):
    case = models.case(name)
    examples = rows.examples(case.rows)
    likelihood = module_likelihood(case, examples)
    examples = likelihood.complete(examples, sampled=False)
    found = outcomes(case.model, likelihood, batches(examples, batch_size), states)
    return {k: f.set_index("example").loc[[e.id for e in examples]] for k, f in found.items()}


def module_likelihood(case, examples):
    return resolve(case.model, case.likelihood, examples)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_tokens_are_those_of_single_rows(name):
    # Catches padding or prompts that count, and a label shift.
    case = models.case(name)
    found = run(name)[""]
    with torch.no_grad():
        expected = [brute.token_losses(case.model, r, case.likelihood) for r in case.rows]
    # The oracle leaves the Gaussian's constant out.
    constant = case.rows[0].labels.numel() * np.log(2 * np.pi) / 2 if "regression" in name else 0
    losses = [float(x.sum()) + constant for x in expected]
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-4)
    if name != "mlp-regression":
        assert list(found["tokens"]) == [x.numel() for x in expected]
    np.testing.assert_allclose(found["kl"], 0, atol=1e-9)


def shifted(case, size):
    move = {n: size * torch.ones_like(p) for n, p in case.model.named_parameters()}
    return lambda: displaced(dict(case.model.named_parameters()), move)


@pytest.mark.parametrize("name", ["gpt2", "resnet"])
def test_divergence_and_hits_against_the_two_softmaxes(name, monkeypatch):
    # Catches the divergence the wrong way round, chunks that lose rows, hits of prompt positions.
    monkeypatch.setattr(module, "_ENTRIES", 100)
    case = models.case(name)
    found = run(name, {"moved": shifted(case, 0.02)}, batch_size=2)["moved"]
    for row, got in zip(case.rows, found.to_dict("records"), strict=True):
        index, labels = brute.supervised(row, case.likelihood)

        def log_p(row=row, index=index):
            out = brute.outputs(case.model, row)
            return (out[index] if out.ndim == 2 else out[None]).double().log_softmax(-1)

        with torch.no_grad():
            p = log_p()
            with shifted(case, 0.02)():
                q = log_p()
        kl = F.kl_div(q, p, log_target=True, reduction="sum")
        assert got["kl"] == pytest.approx(float(kl), rel=1e-3, abs=1e-8)
        assert got["hits"] == int((q.argmax(-1) == torch.as_tensor(labels)).sum())
        assert got["kl"] > 0


def test_the_model_comes_back_when_a_state_fails():
    # Catches frozen parameters left behind by an exception inside of a state.
    case = models.fresh("gpt2")

    @contextmanager
    def broken():
        raise RuntimeError("stop")
        yield

    examples = rows.examples(case.rows)
    likelihood = module_likelihood(case, examples)
    case.model.train()
    with pytest.raises(RuntimeError, match="stop"):
        outcomes(case.model, likelihood, batches(examples, None), {"x": broken})
    assert case.model.training and all(p.requires_grad for p in case.model.parameters())

"""log p, its derivative and draws, against torch's own losses and exact probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fisherscope as fs
from fisherscope.data import Example, collate
from fisherscope.labels import Column, Drawn, Signs
from fisherscope.likelihoods import NAMES, Classification, Regression
from fisherscope.recognition import resolve
from oracles import models, nets, rows

CASES = ("gpt2", "bert-mlm", "bert", "mlp-regression")


def categorical() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 5, dtype=torch.float64)
    return logits, torch.tensor([0, 4, -100, 2, 2, -100])


# Would catch: a mean instead of a sum, a derivative that is not the loss's, masked rows that
# contribute, logits overwritten before the loss is made.
@pytest.mark.parametrize("all_supervised", [False, True])
def test_loss_and_derivative_of_a_class(all_supervised):
    logits, targets = categorical()
    if all_supervised:
        targets = targets.clamp_min(0)
    leaf = logits.clone().requires_grad_(True)
    truth = F.cross_entropy(leaf, targets, reduction="none", ignore_index=-100)
    (gradient,) = torch.autograd.grad(truth.sum(), leaf)
    loss, [(labels, derivative)] = Classification().evaluate(logits.clone(), targets)
    assert torch.allclose(loss, truth.detach()) and torch.allclose(derivative, gradient)
    assert torch.equal(labels, targets)


# Would catch: draws that differ from the inverse of the cumulative distribution; derivatives
# of two draws that share memory; a loss that is not of the data's labels.
def test_drawn_classes():
    logits, targets = categorical()
    uniforms = [torch.rand(6, dtype=torch.float64) for _ in range(3)]
    loss, sets = Classification().evaluate(logits.clone(), targets, list(map(Drawn, uniforms)))
    truth = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    assert torch.allclose(loss, truth)
    p = logits.softmax(-1)
    for u, (labels, derivative) in zip(uniforms, sets, strict=True):
        for row in range(6):
            if targets[row] == -100:
                assert labels[row] == -100 and not derivative[row].any()
                continue
            edges = np.concatenate([[0], p[row].cumsum(0).numpy()])
            label = int(labels[row])
            assert edges[label] <= float(u[row]) * edges[-1] < edges[label + 1]
            expected = p[row] - F.one_hot(labels[row], 5)
            assert torch.allclose(derivative[row], expected)


# Would catch: labels drawn that the model excludes, at both ends of the unit interval. In fp32
# the largest uniform rounds to one.
@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("possible", [[1, 2], [0, 1], [2], [0, 3]])
def test_impossible_classes_are_never_drawn(uniform, possible):
    logits = torch.full((1, 4), -math.inf)
    logits[0, possible] = 0.0
    u = torch.tensor([uniform], dtype=torch.float64)
    loss, [(labels, derivative)] = Classification().evaluate(
        logits, torch.tensor([possible[0]]), [Drawn(u)]
    )
    assert int(labels) == (possible[0] if uniform == 0 else possible[-1])
    assert torch.isfinite(derivative).all() and torch.isfinite(loss).all()


# Would catch: frequencies that are not the model's probabilities.
def test_frequencies_of_draws():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(20_000, 4).clone()
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    p = logits[0].softmax(-1)
    _, [(labels, _)] = Classification().evaluate(
        logits, torch.zeros(20_000, dtype=torch.long), [Drawn(u)]
    )
    found = torch.bincount(labels, minlength=4) / 20_000
    assert torch.allclose(found, p, atol=1e-4)


# Would catch: a factor 2 or 1/K, the constant of the Gaussian, noise of another variance.
def test_gaussian():
    torch.manual_seed(0)
    f, y = torch.randn(5, 3), torch.randn(5, 3)
    loss, [(labels, derivative)] = Regression().evaluate(f.clone(), y)
    truth = -torch.distributions.Normal(f, 1.0).log_prob(y).sum(1)
    assert torch.allclose(loss, truth, atol=1e-5)
    assert torch.allclose(derivative, f - y) and torch.equal(labels, y)
    n = 50_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5).reshape(n, 1) / n
    _, [(labels, derivative)] = Regression().evaluate(
        torch.full((n, 1), 2.0), torch.zeros(n, 1), [Drawn(u)]
    )
    assert float(labels.mean()) == pytest.approx(2, abs=1e-3)
    assert float(labels.std()) == pytest.approx(1, abs=1e-2)
    assert torch.allclose(derivative, 2.0 - labels, atol=1e-6)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_gaussian_draws_are_finite(uniform):
    u = torch.full((1, 2), uniform, dtype=torch.float64)
    _, [(labels, derivative)] = Regression().evaluate(
        torch.zeros(1, 2), torch.zeros(1, 2), [Drawn(u)]
    )
    assert torch.isfinite(labels).all() and torch.isfinite(derivative).all()


def output_fisher(p: torch.Tensor) -> torch.Tensor:
    return torch.diag(p) - torch.outer(p, p)


# Would catch: columns that are not a root of the output Fisher (a missing −p, a probability
# instead of its root), masked rows that contribute.
def test_columns_are_an_exact_root():
    logits, targets = categorical()
    wanted = [Column(c) for c in range(5)]
    _, sets = Classification().evaluate(logits.clone(), targets, wanted)
    columns = torch.stack([derivative for _, derivative in sets], 2)
    for row, target in enumerate(targets):
        if target == -100:
            assert not columns[row].any()
            continue
        expected = output_fisher(logits[row].softmax(-1))
        assert torch.allclose(columns[row] @ columns[row].T, expected, atol=1e-14)
    _, sets = Regression().evaluate(torch.randn(2, 3), torch.zeros(2, 3), wanted[:3])
    columns = torch.stack([derivative for _, derivative in sets], 2)
    assert torch.equal(columns @ columns.mT, torch.eye(3).expand(2, 3, 3))


# Would catch: signs of a row that are not fair or not independent between classes, rows or
# draws (then the mean outer product is not the output Fisher); a wrong root.
def test_signs_have_the_output_fisher_as_covariance():
    n = 40_000
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]], dtype=torch.float64).expand(n, 4).clone()
    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(n, dtype=torch.long)
    targets[0] = -100
    _, [(labels, derivative)] = Classification().evaluate(logits, targets, [Signs(u)])
    assert torch.equal(labels, targets) and not derivative[0].any()
    products = derivative[1:].unsqueeze(2) * derivative[1:].unsqueeze(1)
    error = products.mean(0) - output_fisher(logits[1].softmax(-1))
    assert (error.abs() <= 4 * products.std(0) / n**0.5 + 1e-12).all()
    neighbours = (derivative[1:-1] * derivative[2:]).mean(0)
    assert (neighbours.abs() <= 4 * products.std(0).diagonal() / n**0.5).all()
    _, [(_, derivative)] = Regression().evaluate(
        torch.zeros(n, 1), torch.zeros(n, 1), [Signs(u.reshape(n, 1))]
    )
    assert set(derivative.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(derivative.mean())) <= 4 / n**0.5


# Would catch: a likelihood guessed wrongly from class, problem type or labels.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "causal-lm"),
        ("opt", "causal-lm"),
        ("lora", "causal-lm"),
        ("bert-mlm", "masked-lm"),
        ("albert", "classification"),
        ("vit", "classification"),
        ("llama-classifier", "classification"),
    ],
)
def test_likelihood_of_a_model(name, expected):
    assert resolve(models.case(name).model).name == expected


def test_likelihood_from_the_configuration_or_the_labels():
    single = models.bert(False, num_labels=1)
    assert resolve(single).name == "regression"
    stated = models.bert(False, problem_type="regression")
    assert resolve(stated).name == "regression"
    with pytest.raises(fs.LikelihoodError, match="multi-label"):
        resolve(models.bert(False, problem_type="multi_label_classification"))
    net = nets.MLP(3)
    by_class = rows.examples(rows.points(2, (5,), classes=3))
    by_value = rows.examples(rows.points(2, (5,), targets=3))
    assert resolve(net, "auto", by_class).name == "classification"
    assert resolve(net, "auto", by_value).name == "regression"
    with pytest.raises(fs.LikelihoodError, match="MLP"):
        resolve(net)
    with pytest.raises(fs.LikelihoodError, match="bernoulli"):
        resolve(net, "bernoulli")
    assert [resolve(net, name).name for name in NAMES] == list(NAMES)


# Would catch: a label of the first token counted, although nothing predicts it.
def test_tokens_and_targets():
    labels = torch.tensor([3, -100, 4, 5])
    example = Example("a", {"input_ids": torch.arange(4)}, labels)
    causal, masked = resolve(nets.MLP(2), "causal-lm"), resolve(nets.MLP(2), "masked-lm")
    assert causal.tokens(example) == 2 and masked.tokens(example) == 3
    batch = collate([example])
    assert causal.targets(batch).tolist() == [[-100, 4, 5, -100]]
    assert masked.targets(batch).tolist() == [[3, -100, 4, 5]]


def text(ids, labels, **inputs) -> list[Example]:
    return [
        Example("good", {"input_ids": torch.tensor([1, 2, 3])}, torch.tensor([1, 2, 3])),
        Example(
            "odd",
            {"input_ids": torch.tensor(ids), **inputs},
            None if labels is None else torch.tensor(labels),
        ),
    ]


# Would catch: bad data found in the middle of a long pass, or by an index error of the
# embedding; a message that does not say which example and what to do. No forward pass is
# made.
@pytest.mark.parametrize(
    ("likelihood", "data", "said"),
    [
        ("causal-lm", text([1, 40, 2], [1, 2, 2]), "'odd'.*40.*vocabulary of 40"),
        ("causal-lm", text([1, -1, 2], [1, 2, 2]), "'odd'.*-1.*vocabulary"),
        ("causal-lm", text([1, 2, 3], [1, 44, 3]), "'odd'.*labels.*44"),
        ("causal-lm", text([1, 2, 3], [1, 2]), "'odd'.*one label per token"),
        ("causal-lm", text([1, 2, 3], [1, -100, -100]), "no supervised token.*'odd'"),
        ("causal-lm", text([1, 2, 3], [-100] * 3)[1:], "all labels.*masked"),
        ("causal-lm", text([7], [7]), "no supervised token.*'odd'"),
        ("masked-lm", text([1, 2, 3], None)[1:], "'odd' has no labels"),
        ("masked-lm", text([1, 2, 3], [-100] * 3), "no supervised token.*'odd'"),
        ("classification", text([1, 2], [0, 1])[1:], "'odd'.*one integer label"),
        ("classification", text([1, 2], 0.5)[1:], "'odd'.*regression"),
    ],
)
def test_bad_labels_and_ids_are_named_before_the_first_pass(likelihood, data, said):
    case = models.fresh("gpt2")
    case.model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass was made"))
    with pytest.raises(fs.DataError, match=said):
        fs.estimate(case.model, data, likelihood=likelihood, progress=False)


# Would catch: a class beyond the model's that ends in an index error, or is scored as another.
@pytest.mark.parametrize("label", [3, 7, -1])
def test_a_class_that_the_model_does_not_have(label):
    data = rows.examples(rows.points(4, (5,), classes=3))
    odd = Example("odd", data[0].inputs, torch.tensor(label))
    with pytest.raises((fs.DataError, fs.LikelihoodError), match="odd"):
        fs.estimate(nets.MLP(3), [*data, odd], progress=False)


@pytest.mark.parametrize("name", CASES)
def test_good_data_pass(name):
    case = models.case(name)
    data = rows.examples(case.rows)
    resolve(case.model, case.likelihood).check(data, case.model)


class Table(nn.Module):
    """Not a transformers model; its input embedding can't be asked for."""

    def get_input_embeddings(self):
        raise NotImplementedError

    def forward(self, input_ids, attention_mask=None):
        return F.one_hot(input_ids, 50).float()


# Would catch: a model without a known vocabulary refused.
def test_a_model_that_does_not_know_its_vocabulary():
    data = text([1, 2, 30], [1, 2, 30])
    resolve(Table(), "causal-lm").check(data, Table())

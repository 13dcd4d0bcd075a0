import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fisherscope.data import Example
from fisherscope.likelihoods import CausalLM, Classification, Regression
from fisherscope.studies.tuning import Schedule, fine_tune, row_batches
from oracles import models


def rows(*lengths):
    return [
        Example(str(i), {"input_ids": torch.full((n,), i)}, torch.full((n,), i))
        for i, n in enumerate(lengths)
    ]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_rate_rises_then_falls_and_stays_positive():
    # Catches a warm-up that begins at 0 or never ends, and a cosine of the wrong length.
    schedule = Schedule(steps=100, peak=0.5, warmup=0.1)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates.index(max(rates)) in {9, 10} and max(rates) == pytest.approx(0.5)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.02 and rates[0] == pytest.approx(0.05)
    assert rates[55] == pytest.approx(0.255, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_schedules_have_rates(steps):
    # Catches division by zero where the warm-up takes all steps.
    schedule = Schedule(steps=steps, peak=1.0)
    assert all(0 < schedule.rate(step) <= 1 for step in range(steps))


def test_each_row_comes_once_per_round():
    # Catches drawing with replacement, or rows of the last, smaller batch that never come.
    draw = row_batches(rows(3, 9, 4, 8, 5), 2)
    source = generator()
    for _ in range(2):
        names = [name for _ in range(3) for name in draw(source).ids]
        assert sorted(names) == ["0", "1", "2", "3", "4"]


def test_rows_of_a_batch_are_of_like_length():
    # Catches padding that doubles the time of the fine-tuning.
    draw = row_batches(rows(3, 90, 4, 80), 2)
    source = generator()
    assert sorted(draw(source).labels.shape[1] for _ in range(2)) == [4, 90]


def ragged(count=6, seed=0):
    source = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        ids = torch.randint(1, 30, (3 + i,), generator=source)
        labels = ids.clone()
        labels[: i % 3] = -100
        found.append(Example(str(i), {"input_ids": ids}, labels))
    return found


def one_step(model, draw, likelihood, **options):
    """The gradient that the first step sees, taken by the hook that runs before clipping."""
    seen = {}

    def look():
        for name, p in model.named_parameters():
            seen[name] = None if p.grad is None else p.grad.clone()

    schedule = Schedule(steps=1, peak=1e-3)
    losses = fine_tune(
        model, draw, schedule, likelihood=likelihood, seed=0, penalty=look, progress=False,
        **options,
    )  # fmt: skip
    return losses, seen


def test_the_gradient_is_that_of_the_hugging_face_loss():
    # Catches a label shift, padding that counts, and a mean over rows instead of tokens.
    model = models.gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    draw = row_batches(ragged(), 6)
    reference = copy.deepcopy(model)
    batch = row_batches(ragged(), 6)(generator())
    loss = reference(**batch.inputs, labels=batch.labels).loss
    loss.backward()
    losses, seen = one_step(model, draw, CausalLM())
    assert losses[0] == pytest.approx(loss.item(), rel=1e-5)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(seen[name], p.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_the_gradient_of_plain_networks(kind):
    # Catches a mean over values of a regression, and targets cut as if they were token ids.
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    y = torch.randint(3, (5,)) if kind == "classes" else torch.randn(5, 3)
    examples = [Example(str(i), {"0": x[i]}, y[i]) for i in range(5)]
    reference = copy.deepcopy(model)
    out = reference(x)
    loss = F.cross_entropy(out, y) if kind == "classes" else ((out - y) ** 2).sum() / 2 / 5
    loss.backward()
    likelihood = Classification() if kind == "classes" else Regression()
    _, seen = one_step(model, row_batches(examples, 5), likelihood)
    torch.testing.assert_close(seen["weight"], reference.weight.grad)


def classifier(n=12):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(n, 4), torch.randint(3, (n,))
    return model, [Example(str(i), {"0": x[i]}, y[i]) for i in range(n)]


def run(model, examples, seed=0, steps=5, **options):
    schedule = Schedule(steps=steps, peak=1e-2)
    return fine_tune(
        model, row_batches(examples, 4), schedule, likelihood=Classification(), seed=seed,
        progress=False, **options,
    )  # fmt: skip


def test_a_seed_fixes_data_order_and_dropout_and_leaves_the_global_state():
    # Catches dropout from the global generator, in which two arms of a study would differ.
    model, examples = classifier()
    copies = [copy.deepcopy(model) for _ in range(3)]
    state = torch.get_rng_state()
    first = run(copies[0], examples)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert run(copies[1], examples) == first
    assert run(copies[2], examples, seed=1) != first
    for a, b in zip(copies[0].parameters(), copies[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_that_may_not_move_stay_bitwise():
    # Catches weight decay and momentum, which move a weight without gradient.
    model, examples = classifier()
    before = model[0].weight.detach().clone()
    mask = torch.rand(8, 4) < 0.5
    run(model, examples, trainable={"0.weight": mask})
    assert torch.equal(model[0].weight[~mask], before[~mask])
    assert not torch.equal(model[0].weight[mask], before[mask])


def test_masked_gradients_do_not_count_for_clipping(monkeypatch):
    # Catches masking after clipping, which would shrink the step of what may move.
    model, examples = classifier()
    mask = torch.zeros(8, 4, dtype=torch.bool)
    seen = []
    real = nn.utils.clip_grad_norm_

    def clip(parameters, size):
        seen.append(model[0].weight.grad.clone())
        return real(parameters, size)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    run(model, examples, steps=1, trainable={"0.weight": mask})
    assert not seen[0].any()
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_not_finite_ends_the_training_before_its_step():
    # Catches NaN written into the weights, and a study that dies instead of saying so.
    model, examples = classifier()
    bad = [Example("bad", {"0": torch.full((4,), float("nan"))}, torch.tensor(0))]
    before = model[0].weight.detach().clone()
    losses = run(model, bad)
    assert len(losses) == 1 and losses[0] != losses[0]
    assert torch.equal(model[0].weight, before)


def test_the_hook_can_end_the_training():
    # Catches a stopping rule that is ignored, on which "equal progress" rests.
    model, examples = classifier()
    assert len(run(model, examples, on_step=lambda step, loss: step == 1)) == 2

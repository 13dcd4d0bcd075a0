"""Training that is followed is the training that is not."""

from __future__ import annotations

import pytest
import torch

import fisherscope as fs
from fisherscope.integrations import FisherTracker
from integrations.training import rows, trainer
from oracles import models

OPTIONS = {
    "max_steps": 5,
    "learning_rate": 0.01,
    "optim": "adamw_torch",
    "train_sampling_strategy": "random",
    "eval_strategy": "steps",
    "eval_steps": 2,
}


def trained(out, *, followed: bool, **options):
    torch.manual_seed(0)
    model = models.gpt2(attn_pdrop=0.2, resid_pdrop=0.2, embd_pdrop=0.2)
    run = trainer(model, out, **{**OPTIONS, **options})
    tracker = FisherTracker({"old": rows()}, every=2, fisher_type="mc")
    if followed:
        tracker.attach(run)
    run.train()
    return model, run, tracker, torch.get_rng_state()


# Catches: a random number drawn, dropout left off, a gradient left behind, a loader advanced:
# the run with the tracker then differs from the one without in some bit; and a record of the
# tracker that stands for the one of the loss, which the Trainer then leaves out.
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}])
def test_trajectory_is_bit_identical(tmp_path, options) -> None:
    one, run, _, state = trained(tmp_path, followed=False, **options)
    two, other, tracker, then = trained(tmp_path, followed=True, **options)
    assert len(tracker.to_frame()) >= 3
    assert torch.equal(state, then)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)

    def kept(run, key):
        return [r[key] for r in run.state.log_history if key in r]

    for key in ("loss", "grad_norm", "eval_loss"):
        assert kept(run, key) == kept(other, key) != []


# Catches: an estimate missing or made twice where steps, evaluations and the end coincide; numbers
# of other weights than those of the step; what is kept but not logged.
def test_estimates_are_logged_and_those_of_the_step(tmp_path) -> None:
    model, run, tracker, _ = trained(tmp_path, followed=True)
    table = tracker.to_frame()
    assert list(table["step"]) == [2, 4, 5]
    now = fs.estimate(model, rows(), fisher_type="mc", progress=False)
    last = table.iloc[-1]
    assert last["trace"] == now.trace() and last["se"] == now.standard_error()[""]
    logged = {r["step"]: r for r in run.state.log_history if "fisher/old/trace" in r}
    assert list(logged) == [2, 4, 5]
    assert logged[5]["fisher/old/trace"] == last["trace"]
    assert logged[5]["fisher/old/trace_se"] == last["se"]
    assert logged[5]["fisher/old/participation"] == pytest.approx(
        fs.concentration(now).participation
    )


# Catches: a store that keeps the first Fisher instead of the latest.
def test_store_keeps_the_latest(tmp_path) -> None:
    torch.manual_seed(0)
    model = models.gpt2()
    run, store = trainer(model, tmp_path), fs.FisherStore()
    FisherTracker({"old": rows()}, every=1, store=store).attach(run)
    run.train()
    assert store["old"].trace() == fs.estimate(model, rows(), progress=False).trace()


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [(({},), "at least one"), ((None,), "at least one"), (({"a": rows()}, 0), "every=0")],
    )
    def test_arguments(self, arguments, said) -> None:
        every = arguments[1] if len(arguments) > 1 else None
        with pytest.raises(fs.ParameterError, match=said):
            FisherTracker(arguments[0], every=every)

    # Catches: a tracker that follows a run and logs nowhere.
    def test_not_attached(self, tmp_path) -> None:
        run = trainer(models.gpt2(), tmp_path, [FisherTracker({"a": rows()})])
        with pytest.raises(fs.ParameterError, match="attach"):
            run.train()

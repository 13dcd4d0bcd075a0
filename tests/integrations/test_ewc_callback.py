"""The Trainer with the callback against the same steps written out."""

from __future__ import annotations

import pytest
import torch

import fisherscope as fs
from fisherscope.integrations import EWCCallback
from integrations.training import by_hand, pair, trainer
from oracles import models


def plain():
    return models.fresh("llama-untied").model.train()


def adapted():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=24, target_modules=["q_proj", "down_proj"])
    return peft.get_peft_model(models.fresh("llama-untied").model, config).train()


def close(a, b, tolerance: float) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, msg=name)


# Catches: the penalty added once per micro-batch (accumulation), or after clipping, where it
# would outweigh the clipped gradient; a penalty divided by the number of micro-batches.
@pytest.mark.parametrize("build", [plain, adapted])
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("clip", [0.3, 1e9])
def test_steps_are_those_of_loss_plus_penalty(build, accumulated, clip, tmp_path) -> None:
    (model, ewc), (twin, other) = pair(build, strength=20.0)
    run = trainer(
        model,
        tmp_path,
        [EWCCallback(ewc)],
        gradient_accumulation_steps=accumulated,
        max_grad_norm=clip,
    )
    run.train()
    by_hand(twin, other, accumulated=accumulated, clip=clip)
    close(model, twin, 1e-5)
    assert ewc.penalty() > 0
    # The penalty matters: without it the steps are others.
    (bare, _), (alone, none) = pair(build, strength=0.0)
    del bare
    by_hand(alone, none, accumulated=accumulated, clip=clip)
    gap = max(
        float((p - q).abs().max())
        for p, q in zip(alone.parameters(), twin.parameters(), strict=True)
    )
    assert gap > 1e-4


# Catches: a penalty whose gradient is computed in bf16 under autocast.
def test_bf16_autocast(tmp_path) -> None:
    (model, ewc), (twin, other) = pair(plain, strength=20.0)
    trainer(model, tmp_path, [EWCCallback(ewc)], bf16=True).train()
    by_hand(twin, other, bf16=True)
    close(model, twin, 1e-3)
    assert ewc.penalty() == pytest.approx(other.penalty(), rel=0.02)


# Catches: an unscaled penalty beside scaled losses: after unscaling it would be 1024 times too
# small. A real scaler on the CPU, as fp16=True gives the Trainer on a GPU.
def test_fp16_scaler() -> None:
    from accelerate.optimizer import AcceleratedOptimizer

    (model, ewc), (twin, other) = pair(plain, strength=20.0)
    for m in (model, twin):
        with torch.no_grad():
            next(m.parameters()).add_(0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = AcceleratedOptimizer(inner, device_placement=False, scaler=scaler)
    ids = torch.arange(12).reshape(2, 6)
    EWCCallback(ewc).on_step_begin(None, None, None, model=model, optimizer=optimizer)
    scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
    scaler.unscale_(inner)
    other.add_gradient()
    twin(input_ids=ids, labels=ids).loss.backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


# Catches: a penalty that is left out of the log, or logged as part of the loss.
def test_penalty_is_logged_beside_the_loss(tmp_path) -> None:
    ((model, ewc), _) = pair(plain, strength=20.0)
    run = trainer(model, tmp_path, [EWCCallback(ewc)])
    run.train()
    logged = [r["ewc_penalty"] for r in run.state.log_history if "loss" in r]
    assert len(logged) == 3 and logged[0] == 0 and logged[2] > 0


class TestBadInput:
    def test_no_penalty(self) -> None:
        with pytest.raises(fs.ParameterError, match=r"pass fs\.EWC"):
            EWCCallback("ewc")  # pyright: ignore[reportArgumentType]

    # Catches: a penalty that goes to the gradients of a model that nobody trains.
    def test_another_model(self, tmp_path) -> None:
        ((_, ewc), _) = pair(plain, strength=1.0)
        run = trainer(plain(), tmp_path, [EWCCallback(ewc)])
        with pytest.raises(fs.ParameterError, match="another model"):
            run.train()

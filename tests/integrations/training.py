"""Runs of the Hugging Face Trainer on tiny models, and the same steps written out."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn

import fisherscope as fs
from oracles import models

LENGTH = 6


def data(count: int = 8) -> list[dict]:
    g = torch.Generator().manual_seed(7)
    ids = torch.randint(models.VOCABULARY, (count, LENGTH), generator=g)
    return [{"input_ids": row, "labels": row} for row in ids]


def rows(count: int = 8) -> list[fs.Example]:
    ids = torch.stack([row["input_ids"] for row in data(count)])
    return fs.examples({"input_ids": ids.flip(1), "labels": ids.flip(1)})


def trainer(model: nn.Module, out, callbacks=(), **options):
    from transformers import Trainer, TrainingArguments

    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "train_sampling_strategy": "sequential",
        **options,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(out), **settings),
        train_dataset=data(),
        eval_dataset=data(4),
        callbacks=list(callbacks),
    )


def by_hand(model, ewc, *, steps=3, accumulated=1, clip=1.0, rate=0.1, bf16=False) -> None:
    """SGD on (mean loss per token + penalty), the gradient of both clipped together."""
    batch = data()
    per_step, trained = 2 * accumulated, [p for p in model.parameters() if p.requires_grad]
    for step in range(steps):
        start = step * per_step % len(batch)
        ids = torch.stack([row["input_ids"] for row in batch[start : start + per_step]])
        model.zero_grad()
        context = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
        with context:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        ewc.add_gradient()
        nn.utils.clip_grad_norm_(trained, clip)
        with torch.no_grad():
            for p in trained:
                p.sub_(rate * p.grad)
    model.zero_grad()


def pair(build, strength: float):
    """Two equal models, a penalty on each."""
    first = build()
    fisher = fs.estimate(models.fresh("llama-untied").model, rows(), progress=False)
    second = copy.deepcopy(first)
    return [(m, fs.EWC(m, fisher, strength=strength)) for m in (first, second)]

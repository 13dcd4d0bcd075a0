"""Brittleness: tune several models alike, follow them, compare them at equal progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.engine.whole import needs_whole
from fisherscope.studies.brittleness.rates import REFINEMENTS, Rates, search
from fisherscope.studies.brittleness.request import (
    RATES,
    SEEDS,
    BrittlenessOptions,
    Request,
    make_request,
)
from fisherscope.studies.brittleness.result import Brittleness
from fisherscope.studies.brittleness.running import Runner
from fisherscope.studies.brittleness.tables import MATCHED, SAME_RATE, Runs, assemble


@needs_whole
@torch.inference_mode(False)
def brittleness(
    models: Mapping[str, nn.Module],
    learn: Any,
    tasks: Mapping[str, Any],
    *,
    held_out: Any = None,
    rates: Sequence[float] = RATES,
    share: float = 0.8,
    steps: int = 40,
    batch_rows: int = 8,
    every: int = 2,
    seeds: Sequence[int] = SEEDS,
    looks: int = 2,
    collapse: float = 0.5,
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    seed: int = DEFAULTS.seed,
    max_examples: int | None = DEFAULTS.max_examples,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Brittleness:
    r"""What the same fine-tuning costs the old tasks of several models, at equal progress.

    All models take the same steps on the same batches in the same order, from several seeds, at
    learning rates that are matched by progress: the fall of the new task's held-out loss since
    the start, in nats per token. With :math:`P` the largest fall that two models both make and
    :math:`D_m` the mean rise of the old tasks' losses where model m has first made it, the
    brittleness ratio is :math:`D_\text{other} / D_\text{first}`. Its 95% interval resamples seeds
    and, within every task, examples, the same for all models.

    The search for the rates is bounded: with a grid of r rates every model is tuned at most
    :math:`r + 3` times, with a seed of its own (see
    :func:`fisherscope.studies.brittleness.rates.search`). Beside the result stand the ratio at
    an equal *loss* of the new task, since a model that begins with a lower one has less to learn,
    and the ratio at equal rates, those matched for the first model.

    Args:
        models: Name to model, of one architecture; the others are compared with the first. They
            come back untouched.
        learn: The new task's training examples, as in :func:`fisherscope.estimate`.
        tasks: Old task to data; their losses are watched.
        held_out: Examples of the new task to measure it on. Default: ``None``, one half of
            ``learn``, split by content.
        rates: Peak learning rates that the search begins with. Default: 1e-5 to 1e-3.
        share: How much of the common attainable progress the matched runs are to make, in (0, 1].
            Default: 0.8.
        steps: Optimiser steps (AdamW) of every run. Default: 40.
        batch_rows: Examples per batch. Default: 8.
        every: Steps between measurements of the losses. Default: 2.
        seeds: Of the runs; at least three. Default: 1 to 5.
        looks: How often after the start, evenly spaced, trace and concentration of the old tasks'
            Fishers and the curvature along the update are computed. Default: 2.
        collapse: An old task has collapsed when its loss has gone this share of the way from the
            intact model's to that of a model that ignores its input. Default: 0.5.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        draws: Label draws per example. Default: 1.
        seed: Of the search, of label draws and of resamples; none of ``seeds``. Default: 0.
        max_examples: Watch the first so many of each task. Default: ``None``, all.
        folder: Folder in which finished runs are kept, so that the same call goes on where it
            was stopped. Default: ``None``, nowhere.
        progress: Show a progress bar. Default: ``True``.

    Returns:
        Ratios, curves, collapse, geometry, and the runs behind them. A training that diverges is
        a result: its seed is left out for both models of a pair, and counted.

    Raises:
        ParameterError: If there are fewer than two models, they differ in architecture, or an
            option makes no sense.
        TaskError: If there is no task, or its name is taken.
        DataError: If a row has no supervised token, or held-out rows are among those that are
            learnt.
    """  # noqa: DOC502 (raised by callees)
    options = BrittlenessOptions(
        rates=tuple(rates),
        share=share,
        steps=steps,
        batch_rows=batch_rows,
        every=every,
        seeds=tuple(seeds),
        looks=looks,
        collapse=collapse,
        seed=seed,
    )
    config = FisherConfig(likelihood=likelihood, draws=draws, seed=seed, max_examples=max_examples)
    request = make_request(models, learn, tasks, held_out, config, options, folder)
    runner = Runner(request)
    found = _search(request, runner, progress)
    runs: Runs = {}
    start = {}
    if found.chosen:
        runs = _run_all(request, runner, found, progress)
        start = {name: runner.start(name) for name in request.models} if looks else {}
    return assemble(request, found, runs, start)


def _search(request: Request, runner: Runner, progress: bool) -> Rates:
    options, names = request.options, list(request.models)
    most = len(names) * (len(options.rates) + REFINEMENTS)
    with tqdm(total=most, desc="matching rates", unit="run", disable=not progress) as bar:

        def attainable(model: str, rate: float) -> float:
            fall = runner.attainable(model, rate)
            bar.update()
            return fall

        return search(names, options.rates, options.share, attainable)


def _run_all(request: Request, runner: Runner, found: Rates, progress: bool) -> Runs:
    options, reference = request.options, request.reference
    plan = [(model, MATCHED, rate) for model, rate in found.chosen.items()]
    plan += [(m, SAME_RATE, found.chosen[reference]) for m in found.chosen if m != reference]
    runs: Runs = {(model, arm): [] for model, arm, _ in plan}
    count = len(plan) * len(options.seeds)
    with tqdm(total=count, desc="fine-tuning", unit="run", disable=not progress) as bar:
        for seed in options.seeds:
            for model, arm, rate in plan:
                look = bool(options.looks) and arm == MATCHED
                runs[model, arm].append(runner.run(model, rate, seed, look=look))
                bar.update()
    runs[reference, SAME_RATE] = runs[reference, MATCHED]
    return runs

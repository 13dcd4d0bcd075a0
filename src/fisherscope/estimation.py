"""``estimate()`` and ``plan()``: the one loop over data."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from fisherscope import preparation
from fisherscope.data import Example, batches, fingerprint
from fisherscope.data import halves as split_in_halves
from fisherscope.defaults import DEFAULTS, FisherConfig, FisherType, OnNonFinite, Structure, Unit
from fisherscope.engine.sweep import Sweep
from fisherscope.errors import IdentityError, NonFiniteError
from fisherscope.interruption import whole_batches
from fisherscope.naming import Selection
from fisherscope.preparation import Prepared, settled
from fisherscope.structures import Fisher, Ledger, load
from fisherscope.structures.accumulate import Accumulator

CHECKPOINT_SECONDS = 120.0


@torch.inference_mode(False)
def estimate(
    model: nn.Module,
    data: Any,
    *,
    structure: Structure = DEFAULTS.structure,
    fisher_type: FisherType = DEFAULTS.fisher_type,
    unit: Unit = DEFAULTS.unit,
    parameters: Selection = DEFAULTS.parameters,
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
    halves: bool = DEFAULTS.halves,
    on_nonfinite: OnNonFinite = DEFAULTS.on_nonfinite,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> Fisher:
    r"""Estimate a Fisher of an unmodified model, exactly per datum.

    With the score :math:`s_n = \partial \log p(y_n | x_n) / \partial\theta` of one unit, the
    diagonal is :math:`F_{jj} = \frac1N \sum_n s_{nj}^2`. Squares are taken per unit and then
    summed, never of a batch mean; all uses of a tied or reused parameter are summed before
    squaring. Source: Amari (1998); for the estimators Kunstner, Balles, Hennig (2019).

    Args:
        model: Any ``torch.nn.Module`` whose output holds logits or predictions. It comes
            back untouched; ``requires_grad`` is neither needed nor changed.
        data: Examples, or anything that :func:`fisherscope.data.examples` takes: a batch
            (dict, BatchEncoding, tuple, tensor), a ``DataLoader``, an iterable of batches.
        structure: ``"diagonal"`` (one number per parameter) or ``"grouped"`` (its sums over
            output rows). Default: ``"diagonal"``.
        fisher_type: ``"empirical"`` (the data's labels) or ``"mc"`` (labels drawn from the
            model; unbiased for the true Fisher). Default: ``"empirical"``.
        unit: ``"example"``; ``"token"`` (each supervised token's own log-probability: as many
            backward passes as the longest example has tokens for empirical labels, one per
            draw for ``"mc"``, where cross-token terms vanish in expectation); or
            ``"position"`` (:math:`\sum_t g_t^2 a_t^2` at each layer, the KFAC-expand
            approximation; a parameter on the slow path counts as one position per example).
            Default: ``"example"``.
        parameters: Which parameters, one or several of: a glob over whole names
            (``"*.mlp.*"``); a compiled regular expression, searched in the name;
            :func:`fisherscope.layers`; a predicate ``(name, parameter) -> bool``. In text
            ``"re:…"`` and ``"layers[3:7]"``. Default: ``None``, all.
        likelihood: ``"auto"``, ``"causal-lm"``, ``"masked-lm"``, ``"classification"`` or
            ``"regression"`` (unit variance). Default: ``"auto"``, from the model's class.
        draws: Label draws per example for ``"mc"``. Default: 1.
        seed: Keys drawn labels by (seed, example id, position). Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens. It does not
            change the result beyond rounding.
        max_examples: Use the first so many. Default: ``None``, all.
        halves: Also keep estimates over two disjoint halves of the examples, for ceilings
            and bands; three times the memory of the sums. Default: ``False``.
        on_nonfinite: ``"raise"``, or ``"skip"`` to leave examples with non-finite scores
            out and report their ids. Default: ``"raise"``.
        progress: Show a progress bar. Default: ``True``.
        checkpoint: Folder for the state of an unfinished pass, written every two minutes
            and at the end of the batch in which Ctrl-C is pressed; the same call goes on from
            it. Default: ``None``.

    Returns:
        A :class:`~fisherscope.structures.DiagonalFisher` or
        :class:`~fisherscope.structures.GroupedFisher` with sums, counts and ledger. Wrong
        data, options or models raise before the first pass: ``DataError``,
        ``LikelihoodError``, ``ParameterError``, ``IdentityError`` (foreign checkpoint),
        ``NonFiniteError`` (weights); losses and scores that are not finite raise
        ``NonFiniteError`` with the example's id.
    """
    config = FisherConfig(
        structure=structure,
        fisher_type=fisher_type,
        unit=unit,
        parameters=parameters,
        likelihood=likelihood,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        max_examples=max_examples,
        halves=halves,
        on_nonfinite=on_nonfinite,
    )
    prepared = preparation.prepare(model, data, config)
    folder = Path(checkpoint) if checkpoint is not None else None
    if not halves:
        return _run(prepared, prepared.examples, folder, progress, "Fisher")
    parts = []
    for number, part in enumerate(split_in_halves(prepared.examples)):
        place = folder / f"half-{number}" if folder is not None else None
        parts.append(_run(prepared, part, place, progress, f"Fisher, half {number + 1}"))
    return dataclasses.replace(parts[0] + parts[1], halves=(parts[0], parts[1]))


def identity(model: nn.Module, data: Any, **options: Any):
    """The identity that :func:`estimate` would give its result, without estimating.

    Args:
        model: The model.
        data: The examples.
        **options: The options of :func:`estimate`.

    Returns:
        The identity.
    """
    return preparation.identity(model, data, FisherConfig(**options))


def _run(
    prepared: Prepared,
    examples: Sequence[Example],
    folder: Path | None,
    progress: bool,
    title: str,
) -> Fisher:
    return settled(prepared, lambda p: _Run(p, examples, folder, progress, title).finish())


class _Run:
    """One pass over some examples, resumable."""

    def __init__(
        self,
        prepared: Prepared,
        examples: Sequence[Example],
        folder: Path | None,
        progress: bool,
        title: str,
    ):
        self.prepared, self.examples = prepared, list(examples)
        self.folder, self.progress, self.title = folder, progress, title
        p = prepared
        self.done: list[Example] = []
        self.skipped: list[str] = []
        self.norms: list[np.ndarray] = []
        self.accumulator = self._accumulator()
        self.earlier: Fisher | None = None
        if self.folder is not None and self.folder.exists() and any(self.folder.iterdir()):
            self.earlier = self._resume(load(self.folder))
        known = set()
        if self.earlier is not None:
            known = {*self.earlier.ledger.ids, *self.earlier.skipped}
            # Going on from the same sums, not adding to them at the end, rounds the same way.
            for name, total in self.accumulator.sums.items():
                total.copy_(self.earlier.sums[name])
        left = [e for e in self.examples if e.id not in known]
        self.left = batches(left, p.config.batch_size) if left else []

    def _accumulator(self) -> Accumulator:
        config = self.prepared.config
        return Accumulator(
            self.prepared.parameters, self.prepared.coverage, config.structure, config.unit
        )

    def _resume(self, earlier: Fisher) -> Fisher:
        mine = self.prepared.identity
        mine.check(earlier.identity, ignore=("data_fingerprint", "version"))
        ids = {*earlier.ledger.ids, *earlier.skipped}
        seen = [e for e in self.examples if e.id in ids]
        if fingerprint(seen) != earlier.identity.data_fingerprint or len(seen) != len(ids):
            raise IdentityError(
                f"the checkpoint {self.folder} was made from other examples (data_fingerprint "
                "differs); delete it, or give another folder"
            )
        return earlier

    def finish(self) -> Fisher:
        p = self.prepared
        saved = time.monotonic()
        total = sum(p.likelihood.tokens(e) for group in self.left for e in group)
        sweep = Sweep(p.model, p.likelihood, p.coverage)
        bar = tqdm(total=total, desc=self.title, unit="token", disable=not self.progress)
        try:
            with bar, sweep, whole_batches(self.folder is not None) as interrupted:
                for group in self.left:
                    self._batch(sweep, group)
                    bar.update(sum(p.likelihood.tokens(e) for e in group))
                    late = time.monotonic() - saved > CHECKPOINT_SECONDS
                    if self.folder is not None and (late or interrupted()):
                        self._fisher().save(self.folder)
                        saved = time.monotonic()
                    if interrupted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            if self.folder is not None and self.done and self.accumulator.complete:
                self._fisher().save(self.folder)
            raise
        fisher = self._fisher()
        if self.folder is not None:
            fisher.save(self.folder)
        return fisher

    def _batch(self, sweep: Sweep, group: list[Example]) -> None:
        target = self.accumulator
        if self.prepared.config.on_nonfinite == "skip":
            target = self._accumulator()
        norms, bad = self._pass(sweep, group, target)
        if bad and target is self.accumulator:
            raise NonFiniteError(
                f"the loss or the score of example {', '.join(map(repr, bad[:5]))} is not finite; "
                "look at this example, use fp32 weights, or pass on_nonfinite='skip'"
            )
        if bad and len(group) > 1:
            for example in group:
                self._batch(sweep, [example])
            return
        if bad:
            self.skipped += bad
            return
        if target is not self.accumulator:
            for name, total in self.accumulator.sums.items():
                total.add_(target.sums[name])
        self.done += group
        self.norms.append(norms)

    def _pass(self, sweep: Sweep, group: list[Example], target: Accumulator):
        target.open_batch(len(group), self.prepared.kept_sets, sweep.device)
        loss = sweep.run(group, self.prepared.labelling, target.add)
        norms = target.batch_norms()
        finite = np.isfinite(norms).all((0, 2)) & torch.isfinite(loss).cpu().numpy()
        return norms, [e.id for e, good in zip(group, finite, strict=True) if not good]

    def _fisher(self) -> Fisher:
        p, config = self.prepared, self.prepared.config
        shape = (p.kept_sets, 0, len(p.parameters))
        norms = np.concatenate([np.zeros(shape), *self.norms], axis=1)
        several = config.fisher_type == "mc" and config.draws > 1
        tokens = np.array([p.likelihood.tokens(e) for e in self.done], dtype=np.int64)
        skipped = set(self.skipped)
        seen = [*self.done, *(e for e in self.examples if e.id in skipped)]
        fisher = Fisher.of_structure(config.structure)(
            identity=dataclasses.replace(p.identity, data_fingerprint=fingerprint(seen)),
            sums={name: t.detach().cpu().clone() for name, t in self.accumulator.sums.items()},
            ledger=Ledger(
                ids=tuple(e.id for e in self.done),
                tensors=tuple(p.parameters),
                squares=norms.mean(0),
                tokens=tokens,
                draw_variance=norms.var(0, ddof=1) if several else None,
                draw_variance_total=norms.sum(2).var(0, ddof=1) if several else None,
            ),
            coverage=dict(p.coverage.text),
            n_units=len(self.done) if config.unit == "example" else int(tokens.sum()),
            skipped=tuple(self.skipped),
        )
        if self.earlier is None:
            return fisher
        return dataclasses.replace(self.earlier + fisher, sums=fisher.sums)

"""``estimate()``: the one loop over data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fisherscope import preparation, specs
from fisherscope.checkpoint import Checkpoint
from fisherscope.data import Example, fingerprint
from fisherscope.data import halves as split_in_halves
from fisherscope.defaults import DEFAULTS, FisherConfig, FisherType, OnNonFinite, Sampling, Unit
from fisherscope.distributed import Ranks
from fisherscope.engine.mapped import trim
from fisherscope.errors import IdentityError, ParameterError
from fisherscope.naming import Selection
from fisherscope.partition import Budget, stages_of, sums_bytes
from fisherscope.passes import Pass, otherwise_cut
from fisherscope.preparation import Prepared, settled
from fisherscope.structures import Fisher, KFACFisher
from fisherscope.structures.columns import beside
from fisherscope.structures.eigenvectors import decompose
from fisherscope.structures.io import MANIFEST
from fisherscope.structures.rooms import Disk, memory
from fisherscope.structures.spread import Owners, save_spread


@torch.inference_mode(False)
def estimate(
    model: nn.Module,
    data: Any,
    *,
    structure: str | specs.Spec = DEFAULTS.structure,
    fisher_type: FisherType = DEFAULTS.fisher_type,
    unit: Unit = DEFAULTS.unit,
    parameters: Selection = DEFAULTS.parameters,
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    sampling: Sampling = DEFAULTS.sampling,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
    halves: bool = DEFAULTS.halves,
    on_nonfinite: OnNonFinite = DEFAULTS.on_nonfinite,
    progress: bool = True,
    checkpoint: str | Path | Checkpoint | None = None,
    memory_limit: int | str | None = None,
    offload_folder: str | Path | None = None,
    basis: KFACFisher | None = None,
    distributed: bool = True,
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
        structure: What is kept of the matrix, as text or as a spec with options:
            ``"diagonal"`` (one number per parameter), ``"grouped"`` (its sums over output
            rows), ``"kfac"`` (:class:`fisherscope.KFAC`), ``"ekfac"``
            (:class:`fisherscope.EKFAC`, a second pass), ``"block"``
            (:class:`fisherscope.Block`, per tensor or layer), ``"dense"``. Default:
            ``"diagonal"``.
        fisher_type: ``"empirical"`` (the data's labels), ``"mc"`` (labels drawn from the
            model; unbiased for the true Fisher) or ``"type-2"`` (the exact expectation over
            the model's labels, the generalised Gauss-Newton matrix: as many backward passes
            as the longest example has tokens times the model has classes; read the
            :func:`fisherscope.plan` first). Default: ``"empirical"``.
        unit: ``"example"``; ``"token"`` (each supervised token's own log-probability: as many
            backward passes as the longest example has tokens for empirical labels, one per
            draw for ``"mc"``, where cross-token terms vanish in expectation); or
            ``"position"`` (:math:`\sum_t g_t^2 a_t^2` at each layer, the KFAC-expand
            approximation; a parameter on the slow path counts as one position per example);
            or, for ``"mc"``, ``"batch"`` (the squared sum over a batch, the
            Gauss-Newton-Bartlett estimator of Liu et al. 2023: unbiased because drawn scores
            have mean zero, as cheap as one training step, about a batch size noisier).
            Default: ``"example"``.
        parameters: Which parameters, one or several of: a glob over whole names
            (``"*.mlp.*"``); a compiled regular expression, searched in the name;
            :func:`fisherscope.layers`; a predicate ``(name, parameter) -> bool``. In text
            ``"re:…"`` and ``"layers[3:7]"``. Default: ``None``, all.
        likelihood: ``"auto"``, ``"causal-lm"``, ``"masked-lm"``, ``"classification"`` or
            ``"regression"`` (unit variance). Default: ``"auto"``, from the model's class.
        draws: Label draws per example for ``"mc"``. Default: 1.
        sampling: What a draw of ``"mc"`` is: ``"labels"`` of the model, or ``"signs"``,
            random signs on the root of the Fisher of its outputs; both are unbiased. Signs
            vary less the surer the model is of its labels, most of all for heads and tied
            embeddings; equally for near-uniform predictions (``docs/fisher.md``).
            Default: ``"labels"``.
        seed: Keys drawn labels by (seed, example id, position). Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens. It does not
            change the result beyond rounding.
        max_examples: Use the first so many. Default: ``None``, all.
        halves: Also keep estimates over two disjoint halves of the examples, for ceilings
            and bands; three times the memory of the sums. Default: ``False``.
        on_nonfinite: ``"raise"``, or ``"skip"`` to leave examples with non-finite scores
            out and report their ids. Default: ``"raise"``.
        progress: Show a progress bar. Default: ``True``.
        checkpoint: Folder for the state of an unfinished estimate, or a
            :class:`fisherscope.Checkpoint` that says how often it is written: every two
            minutes, after each eigendecomposition, and at the end of the batch in which
            Ctrl-C is pressed or SIGTERM arrives. The same call goes on from it, with any
            ``batch_size``; while it runs, no other may. Default: ``None``.
        memory_limit: Most memory for the sums, in bytes or as text (``"8GB"``): parameters
            are cut into as many parts as it takes, each with a pass of its own, and so is their
            verification. The numbers are the same. Finished sums of a model on the CPU go to
            ``offload_folder``, then by default the system's folder for temporary files.
            Default: ``None``, one pass.
        offload_folder: Folder for sums on disk, as memory-mapped files that have no name and are
            gone with the Fisher. Without a ``memory_limit`` they are there from the beginning:
            one pass, in which the system brings and takes their pages. Default: ``None``, in
            memory.
        basis: For ``"ekfac"``: a KFAC of the same parameters whose eigenvectors are used, so
            that estimates over different data can be added. Default: ``None``, one is
            estimated on the same data first.
        distributed: Where a ``torch.distributed`` process group of several ranks is
            initialised: share the examples among them. Every rank makes the same call with
            the same data and gets the same result; the first one writes the checkpoint and
            shows progress. ``False``: this process works alone. Default: ``True``.

    Returns:
        A :class:`~fisherscope.structures.Fisher` of the structure, with sums, counts and
        ledger.

    An option, or a combination of options, that makes no sense raises :class:`ParameterError`
    before the first pass, and so do wrong data and models: ``DataError``, ``LikelihoodError``,
    ``IdentityError`` (foreign checkpoint or basis), ``NonFiniteError`` (weights), ``StoreError``
    (a checkpoint that is damaged or in use). Losses and scores that are not finite raise
    ``NonFiniteError`` with the example's id.
    """
    config = FisherConfig(
        structure=structure,
        fisher_type=fisher_type,
        unit=unit,
        parameters=parameters,
        likelihood=likelihood,
        draws=draws,
        sampling=sampling,
        seed=seed,
        batch_size=batch_size,
        max_examples=max_examples,
        halves=halves,
        on_nonfinite=on_nonfinite,
    )
    ranks = Ranks(together=distributed)
    budget = Budget.of(memory_limit, offload_folder)
    run = _Estimate(Checkpoint.of(checkpoint), progress, budget, ranks)
    return _estimated(model, data, config, run, basis)


@torch.inference_mode(False)
def estimate_into(
    path: str | Path,
    model: nn.Module,
    data: Any,
    *,
    progress: bool = True,
    checkpoint: str | Path | Checkpoint | None = None,
    memory_limit: int | str | None = None,
    offload_folder: str | Path | None = None,
    basis: KFACFisher | None = None,
    **options: Any,
) -> None:
    """Estimate into a folder, so that no rank ever holds all sums of a large model.

    Every rank of the process group makes this call. Each keeps the sums of some parameters: they
    are added up there, not everywhere, and written by it as shards of one folder, which all ranks
    have to see. :func:`fisherscope.load` reads it on any number of processes. With
    ``memory_limit``, a rank holds at most that much of sums in work, beside those it keeps.

    The eigenvectors of an EKFAC, and the factors that they are of, are held by every rank.

    Args:
        path: The folder; a Fisher already there is replaced once this one is complete.
        model: As in :func:`fisherscope.estimate`, also sharded over the ranks.
        data: As in :func:`fisherscope.estimate`.
        progress: As in :func:`fisherscope.estimate`. Default: ``True``.
        checkpoint: As in :func:`fisherscope.estimate`; its states hold all sums, and pass
            through the first rank. Default: ``None``.
        memory_limit: As in :func:`fisherscope.estimate`. Default: ``None``, one pass.
        offload_folder: As in :func:`fisherscope.estimate`; each rank may have its own. Default:
            ``None``, in memory.
        basis: As in :func:`fisherscope.estimate`. Default: ``None``.
        **options: The options of :func:`fisherscope.estimate` other than ``distributed``.

    The errors are those of :func:`fisherscope.estimate`, and ``StoreError`` on all ranks if the
    folder can't be written by one of them.
    """
    ranks, budget = Ranks(), Budget.of(memory_limit, offload_folder)
    run = _Estimate(Checkpoint.of(checkpoint), progress, budget, ranks, spread=True)
    fisher = _estimated(model, data, FisherConfig(**options), run, basis)
    save_spread(fisher, path, run.owners[0], ranks)


def _estimated(
    model: nn.Module, data: Any, config: FisherConfig, run: _Estimate, basis: KFACFisher | None
) -> Fisher:
    kept, ranks = run.checkpoint, run.ranks
    budget = run.budget
    options = (budget.folder is not None, kept is not None)
    prepared = preparation.agreed(model, data, config, ranks, budget.limit, *options)
    # Of several processes on one machine, each needs as much.
    beside_us = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world)) if ranks.world > 1 else 1
    based = isinstance(prepared.spec, specs.EKFAC) and basis is not None
    ranks.each(lambda: run.disks.append(budget.disk(prepared, based=based, ranks=beside_us)))
    with ExitStack() as stack:
        if kept is not None:
            ranks.once(lambda: stack.enter_context(kept.claimed()))
        return run.whole(prepared, basis)


@torch.inference_mode(False)
def estimate_prepared(prepared: Prepared) -> Fisher:
    """:func:`estimate` for a request that has been checked, in one pass without a bar.

    Args:
        prepared: The request; its structure is not ``"ekfac"``.

    Returns:
        The Fisher.
    """
    alone = _Estimate(None, False, Budget(), Ranks(together=False))
    return settled(prepared, lambda p: alone(p, p.examples, None, "Fisher"))


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


@dataclasses.dataclass(frozen=True)
class _Estimate:
    """Passes over examples, as many as the memory for the sums asks for."""

    checkpoint: Checkpoint | None
    progress: bool
    budget: Budget
    ranks: Ranks
    spread: bool = False
    owners: list[Owners] = dataclasses.field(default_factory=list)
    disks: list[Disk | None] = dataclasses.field(default_factory=list)

    @property
    def disk(self) -> Disk | None:
        """Where finished sums are kept, if not in memory."""
        return self.disks[0] if self.disks else None

    def whole(self, prepared: Prepared, basis: KFACFisher | None) -> Fisher:
        """All passes of an estimate, with one way to cover each parameter."""
        return settled(prepared, lambda p: self._whole(p, basis))

    def _whole(self, prepared: Prepared, basis: KFACFisher | None) -> Fisher:
        kept = self.checkpoint
        if isinstance(prepared.spec, specs.EKFAC):
            basis = _checked(basis, prepared) if basis else self.factors(prepared)
            decompose(basis, kept and kept.path / "eigenvectors", self.ranks, self.disk)
            kept = _within(kept, "eigenvalues")
        elif basis is not None:
            raise ParameterError(
                f"basis= is for structure='ekfac'; structure={str(prepared.spec)!r} has no "
                "eigenbasis"
            )
        self.owners.clear()
        if self.spread:
            self.owners.append(Owners(sums_bytes(prepared, basis), self.ranks.world))
        if not prepared.config.halves:
            return self(prepared, prepared.examples, kept, "Fisher", basis)
        parts = []
        for number, part in enumerate(split_in_halves(prepared.examples)):
            place = _within(kept, f"half-{number}")
            parts.append(self(prepared, part, place, f"Fisher, half {number + 1}", basis))
        both = parts[0].plus(parts[1], self.disk.zeros if self.disk else memory)
        return dataclasses.replace(both, halves=(parts[0], parts[1]))

    def factors(self, prepared: Prepared) -> KFACFisher:
        """The KFAC whose eigenbasis an EKFAC over the same examples uses."""
        place = _within(self.checkpoint, "factors")
        found = self(stages_of(prepared)[0], prepared.examples, place, "Kronecker factors")
        assert isinstance(found, KFACFisher)
        return found

    def __call__(
        self,
        prepared: Prepared,
        examples: Sequence[Example],
        checkpoint: Checkpoint | None,
        title: str,
        basis: KFACFisher | None = None,
    ) -> Fisher:
        parts = self.budget.parts(prepared, basis)
        if len(parts) == 1:
            return self._pass(prepared, examples, checkpoint, title, basis)
        found: list[Fisher] = []
        for number, names in enumerate(parts):
            place = _within(checkpoint, f"part-{number}")
            label = f"{title}, part {number + 1} of {len(parts)}"
            part = prepared.only(names)
            found.append(self._pass(part, examples, place, label, basis))
        skipped = {example for fisher in found for example in fisher.skipped}
        if any(set(fisher.skipped) != skipped for fisher in found):
            # An example that is not finite in one part has to be left out of all.
            kept = [example for example in examples if example.id not in skipped]
            found.clear()
            whole = self(prepared, kept, _within(checkpoint, "finite"), title, basis)
            seen = dataclasses.replace(whole.identity, data_fingerprint=fingerprint(examples))
            return dataclasses.replace(whole, identity=seen, skipped=tuple(sorted(skipped)))
        return beside(found, prepared.identity)

    def _pass(
        self,
        prepared: Prepared,
        examples: Sequence[Example],
        checkpoint: Checkpoint | None,
        title: str,
        basis: KFACFisher | None,
    ) -> Fisher:
        shown, ranks, room = self.progress, self.ranks, self.budget.room(self.disk)
        owners = self.owners[0] if self.owners else None
        todo = Pass(prepared, examples, checkpoint, shown, title, basis, ranks, owners, room)
        fisher = todo.finish()
        if self.disk is not None:
            del todo  # and the sums in work with it
            for key, total in fisher.sums.items():
                if owners is None or owners.of(key) == ranks.rank:
                    fisher.sums[key] = self.disk.kept(total)
            trim()
        return fisher


def _within(checkpoint: Checkpoint | None, name: str) -> Checkpoint | None:
    if checkpoint is None:
        return None
    if (checkpoint.path / MANIFEST).exists():
        raise otherwise_cut(checkpoint.path)
    return checkpoint.within(name)


def _checked(basis: KFACFisher, prepared: Prepared) -> KFACFisher:
    if not isinstance(basis, KFACFisher):
        raise ParameterError(f"basis= is a {type(basis).__name__}; pass a Fisher of 'kfac'")
    mine, theirs = prepared.identity, basis.identity
    wanted = stages_of(prepared)[0].identity.structure
    if theirs.structure != wanted:
        raise ParameterError(
            f"structure={mine.structure!r} has the eigenbasis of {wanted!r}, but basis= is of "
            f"{theirs.structure!r}; give both the same options"
        )
    for name in ("parameters", "model_fingerprint"):
        if getattr(mine, name) != getattr(theirs, name):
            raise IdentityError(
                f"basis= is of another model or other parameters ({name} differs); estimate it "
                "with the same parameters= of the same model"
            )
    return basis

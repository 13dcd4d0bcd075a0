"""What a displacement of the weights does to a task: predicted in full, and measured."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fisherscope.arguments import check_mapping, check_tensors
from fisherscope.data import batches
from fisherscope.defaults import DEFAULTS, FisherConfig, FisherType
from fisherscope.engine.displace import displaced
from fisherscope.engine.losses import example_losses
from fisherscope.engine.named import by_first_name, first_names
from fisherscope.engine.scores import Score
from fisherscope.engine.selection import select
from fisherscope.engine.sweep import Labelling, Sweep
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.preparation import Prepared, prepare, settled
from fisherscope.results import Result
from fisherscope.structures import Fisher
from fisherscope.structures.intervals import resamples

Delta = Mapping[str, Tensor]


@dataclass(frozen=True)
class Damage(Result):
    """Loss increase of a task under displacements, in nats per token.

    Attributes:
        table: One row per displacement and scale t: ``first`` (``t gᵀδ``), ``second``
            (``½ t² δᵀFδ``, full form), ``predicted`` (their sum) and ``measured`` with 95%
            bootstrap intervals over examples, ``error`` (measured − predicted, paired
            interval), and for each stored Fisher ``NAME`` its prediction
            ``first + ½ t² δᵀF_NAME δ``.
        tensors: One row per displacement and tensor, at scale 1: its share of ``first`` and
            of ``second``, the latter with its cross terms with all other tensors.
        examples: One row per displacement, scale and example: tokens, first and second order,
            measured change, in nats per example.
        fisher_type: Labels of the second-order term.
        n_examples: Number of examples.
        n_tokens: Number of supervised tokens.
    """

    table: pd.DataFrame
    tensors: pd.DataFrame
    examples: pd.DataFrame
    fisher_type: str
    n_examples: int
    n_tokens: int

    def of(self, label: str) -> Damage:
        """The part of one displacement.

        Args:
            label: Its label.

        Returns:
            The same for this one alone.
        """
        parts = {
            name: frame[frame["displacement"] == label].reset_index(drop=True)
            for name, frame in (
                ("table", self.table),
                ("tensors", self.tensors),
                ("examples", self.examples),
            )
        }
        return replace(self, **parts)

    def to_frame(self) -> pd.DataFrame:
        """The predictions beside the measurements.

        Returns:
            ``table``.
        """
        return self.table.copy()


@needs_whole
@torch.inference_mode(False)
def damage(
    model: nn.Module,
    data: Any,
    delta: Delta | Mapping[str, Delta],
    *,
    scales: Sequence[float] = (1.0,),
    fishers: Mapping[str, Fisher] | None = None,
    fisher_type: FisherType = "mc",
    likelihood: str = DEFAULTS.likelihood,
    draws: int = DEFAULTS.draws,
    seed: int = DEFAULTS.seed,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = DEFAULTS.max_examples,
    measure: bool = True,
    progress: bool = False,
) -> Damage:
    r"""Predicted and measured loss increase of a task when the weights move by ``delta``.

    The full form needs no stored Fisher: with the loss gradient :math:`g_n` of example n,

    .. math:: \Delta L \approx \frac1T \sum_n g_n^\top\delta
              + \frac1{2T} \sum_n \langle s_n, \delta\rangle^2

    with :math:`T` tokens, and :math:`s_n` the score of the example's labels (drawn from the
    model for ``"mc"``, where the second term is an unbiased estimate of ``½ δᵀFδ`` with the
    true Fisher; the data's for ``"empirical"``). One pass serves any number of
    displacements. The measurement moves the weights, evaluates, and moves them back.

    Args:
        model: The model at the start of the displacement; it comes back bitwise.
        data: The task, as in :func:`fisherscope.estimate`.
        delta: Parameter name to displacement, or a label to such a mapping for several;
            a parameter that is not named does not move.
        scales: How far to go along each displacement, as multiples of it. Default: once.
        fishers: Label to stored Fisher; what each predicts is shown beside. Default: none.
        fisher_type: Labels of the second-order term. Default: ``"mc"``.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        draws: Label draws per example for ``"mc"``. Default: 1.
        seed: Keys the draws and the bootstrap. Default: 0.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Use the first so many. Default: ``None``, all.
        measure: Take the step and measure. Default: ``True``.
        progress: Show a progress bar. Default: ``False``.

    Returns:
        Predictions and measurements.

    Raises:
        ParameterError: If ``fisher_type`` is neither ``"mc"`` nor ``"empirical"``, a scale is
            not finite, or a displacement has an unknown parameter or a wrong shape; one that
            is not finite raises ``NonFiniteError``, as does a score.
    """
    if fisher_type == "type-2":
        raise ParameterError(
            "damage() takes fisher_type='mc' or 'empirical'; for the exact expectation over labels "
            "use fs.operator(model, data, curvature='ggn').quadratic(delta) / 2"
        )
    if not len(scales) or not all(math.isfinite(scale) for scale in scales):
        raise ParameterError(f"scales={scales!r} must be at least one finite number")
    deltas = _labelled(delta)
    known = select(model) | _quantised(model, deltas)
    moves = {label: _checked(label, move, model, known) for label, move in deltas.items()}
    names = [n for n in known if any(n in move for move in moves.values())]
    config = FisherConfig(
        fisher_type="empirical",  # the first order and the measurement need the data's labels
        likelihood=likelihood,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        max_examples=max_examples,
        parameters=[glob.escape(name) for name in names],
    )
    prepared = prepare(model, data, config)
    prepared = prepared.under(replace(config, fisher_type=fisher_type))
    return damage_prepared(
        prepared, moves, scales=scales, fishers=fishers, measure=measure, progress=progress
    )


@torch.inference_mode(False)
def damage_prepared(
    prepared: Prepared,
    moves: Mapping[str, Delta],
    *,
    scales: Sequence[float] = (1.0,),
    fishers: Mapping[str, Fisher] | None = None,
    measure: bool,
    progress: bool = False,
) -> Damage:
    """:func:`damage` for a request that has been checked.

    Args:
        prepared: The request, with the data's labels; its ``fisher_type``, ``draws`` and ``seed``
            are those of the second order.
        moves: Label to displacement of parameters of the request, under their first names.
        scales: As for :func:`damage`. Default: once.
        fishers: As for :func:`damage`. Default: none.
        measure: Take the step and measure.
        progress: Show a progress bar. Default: ``False``.

    Returns:
        Predictions and measurements.
    """
    config, names = prepared.config, list(prepared.parameters)
    groups = batches(prepared.examples, config.batch_size)
    ids = [e.id for group in groups for e in group]
    tokens = np.array([prepared.likelihood.tokens(e) for g in groups for e in g], dtype=float)

    def along(labelling: Labelling) -> np.ndarray:
        return settled(prepared, lambda p: inner_products(p, labelling, moves, progress))

    gradient = along(Labelling())[0]
    scores = gradient[None]
    if config.fisher_type == "mc":
        scores = along(Labelling(draws=config.draws, seed=config.seed))
    unmeasured = np.full(len(ids), np.nan)
    changes = {(label, scale): unmeasured for label in moves for scale in scales}
    if measure:
        changes = _measure(prepared, groups, ids, moves, scales, progress)
    return _assemble(prepared, names, ids, tokens, gradient, scores, changes, moves, fishers or {})


def inner_products(
    prepared: Prepared, labelling: Labelling, moves: Mapping[str, Delta], progress: bool
) -> np.ndarray:
    """Per-example inner products of scores and displacements, tensor by tensor.

    Args:
        prepared: A checked request; the order of its batches is that of the result.
        labelling: Which labels are scored.
        moves: Label to displacement.
        progress: Show a progress bar.

    Returns:
        float64 [sets of labels, examples, tensors, displacements]. One that is not finite
        raises :class:`NonFiniteError`.
    """
    names = list(prepared.parameters)
    column = {name: i for i, name in enumerate(names)}
    device = next(prepared.model.parameters()).device
    placed = [{n: t.to(device) for n, t in move.items()} for move in moves.values()]
    sets = max(1, labelling.draws)
    parts: list[np.ndarray] = []
    groups = batches(prepared.examples, prepared.config.batch_size)
    bar = tqdm(groups, desc="inner products", unit="batch", disable=not progress)
    with bar, Sweep(prepared.model, prepared.likelihood, prepared.coverage) as sweep:
        for group in bar:
            found = torch.zeros(
                (sets, len(group), len(names), len(placed)), dtype=torch.float64, device=device
            )

            def sink(name: str, score: Score, rows: slice, draw: int, into: Tensor = found) -> None:
                own = [d for d, move in enumerate(placed) if name in move]
                if own:
                    along = score.inners([placed[d][name] for d in own])
                    into[draw, rows, column[name]][:, own] += along.t()

            loss = sweep.run(group, labelling, sink)
            values = found.cpu().numpy()
            finite = np.asarray(np.isfinite(values).all((0, 2, 3)))
            sweep.check(finite, group, loss, along=" along a displacement")
            parts.append(values)
    return np.concatenate(parts, axis=1)


def _labelled(delta: Delta | Mapping[str, Delta]) -> dict[str, Delta]:
    check_mapping("delta", delta, "{parameter name: tensor}, or {label: such a mapping}")
    if not delta:
        raise ParameterError("delta is empty: name at least one parameter that moves")
    if all(isinstance(value, torch.Tensor) for value in delta.values()):
        return {"delta": cast(Delta, delta)}
    for label, move in delta.items():
        check_tensors(f"displacement {label!r}", move, "{parameter name: tensor}")
    return {label: cast(Delta, move) for label, move in delta.items()}


def _quantised(model: nn.Module, deltas: Mapping[str, Delta]) -> dict[str, nn.Parameter]:
    """The quantised weights among those that move, which have to be asked for."""
    named = {name for move in deltas.values() for name in move}
    integers = [n for n, p in model.named_parameters() if not p.is_floating_point() and n in named]
    return select(model, [glob.escape(name) for name in integers]) if integers else {}


def _checked(
    label: str, move: Delta, model: nn.Module, known: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    shapes = {name: tuple(p.shape) for name, p in known.items()}
    return by_first_name(move, shapes, first_names(model, known), f"displacement {label!r} has")


def _measure(
    prepared: Prepared,
    groups: Sequence[Sequence[Any]],
    ids: list[str],
    moves: Mapping[str, Delta],
    scales: Sequence[float],
    progress: bool,
) -> dict[tuple[str, float], np.ndarray]:
    likelihood, model, coverage = prepared.likelihood, prepared.model, prepared.coverage
    before = example_losses(model, likelihood, coverage, groups)
    changes = {}
    steps = [(label, scale) for label in moves for scale in scales]
    for label, scale in tqdm(steps, desc="measuring", unit="step", disable=not progress):
        move = moves[label] if scale == 1 else {n: scale * t for n, t in moves[label].items()}
        with displaced(prepared.parameters, move):
            after = example_losses(model, likelihood, coverage, groups)
        changes[label, scale] = np.array([after[i] - before[i] for i in ids])
    return changes


def _assemble(
    prepared: Prepared,
    names: list[str],
    ids: list[str],
    tokens: np.ndarray,
    gradient: np.ndarray,
    scores: np.ndarray,
    changes: Mapping[tuple[str, float], np.ndarray],
    moves: Mapping[str, Delta],
    fishers: Mapping[str, Fisher],
) -> Damage:
    total = tokens.sum()
    weights = resamples(len(ids), prepared.config.seed)
    along = scores.sum(2)  # [sets, examples, displacements]
    column = {label: d for d, label in enumerate(moves)}
    stored = {
        label: {name: _stored(fisher, move) for name, fisher in fishers.items()}
        for label, move in moves.items()
    }
    table, examples = [], []
    for (label, scale), measured in changes.items():
        first = scale * gradient[:, :, column[label]].sum(1)
        second = 0.5 * scale**2 * (along[:, :, column[label]] ** 2).mean(0)
        row: dict[str, Any] = {"displacement": label, "scale": scale}
        row["first"], row["second"] = first.sum() / total, second.sum() / total
        for key, values in (
            ("predicted", first + second),
            ("measured", measured),
            ("error", measured - first - second),
        ):
            row[key] = values.sum() / total
            ratios = (weights @ values) / (weights @ tokens)
            row[f"{key}_low"], row[f"{key}_high"] = np.quantile(ratios, [0.025, 0.975])
        for name, curvature in stored[label].items():
            row[name] = row["first"] + 0.5 * scale**2 * curvature
        table.append(row | {"unit": "nats per token", "n_examples": len(ids), "n_tokens": total})
        examples.append(
            pd.DataFrame({
                "displacement": label,
                "scale": scale,
                "example": ids,
                "tokens": tokens.astype(int),
                "first": first,
                "second": second,
                "measured": measured,
            })
        )
    # Its cross terms with all others: the tensor's own product times that of the whole.
    cross = 0.5 * (scores * along[:, :, None]).mean(0).sum(0) / total
    firsts = gradient.sum(0) / total
    tensors = [
        {"displacement": label, "tensor": name, "first": firsts[j, d], "second": cross[j, d]}
        for label, d in column.items()
        for j, name in enumerate(names)
    ]
    return Damage(
        table=pd.DataFrame(table).astype({"n_tokens": int}),
        tensors=pd.DataFrame(tensors),
        examples=pd.concat(examples, ignore_index=True),
        fisher_type=prepared.config.fisher_type,
        n_examples=len(ids),
        n_tokens=int(total),
    )


def _stored(fisher: Fisher, move: Delta) -> float:
    """Curvature along a displacement by a stored Fisher, per token."""
    held = {n: t for n, t in move.items() if n in fisher.identity.parameters}
    return fisher.quadratic(held) * fisher.n_units / fisher.n_tokens

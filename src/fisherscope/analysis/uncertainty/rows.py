"""What is predicted: one row per example or supervised token, a few classes each."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.arguments import check_whole
from fisherscope.data import Example, batches, examples
from fisherscope.defaults import FisherConfig
from fisherscope.engine.head import call_model, make_batch
from fisherscope.engine.outputs import OutputRows, supervised_outputs
from fisherscope.engine.quiet import undisturbed
from fisherscope.errors import DataError, NonFiniteError, ParameterError
from fisherscope.preparation import Prepared, prepare
from fisherscope.recognition import resolve
from fisherscope.structures import Fisher

MOST_LIKELY = 10
_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Rows:
    """Outputs of the model at every row that is predicted, in the order of the examples.

    Attributes:
        ids: Id of each example.
        example: int64 [n], number of each row's example.
        position: int64 [n], where the predicted token stands in its example; 0 for classes.
        classes: int64 [n, k], the classes told apart; for a regression its values' numbers.
        outputs: float64 [n, c], their logits; with ``pooled`` (c = k + 1) the log-sum-exp of
            all others last. For a regression the predicted values.
        pooled: Whether all other classes are one more column.
        label: int64 [n], the true class, or [n, c] real targets.
        column: int64 [n], the column that the label falls into.
        inside: float64 [n], the label's log-probability given its column.
        squares: float64 [n], the sum of squared probabilities of the pooled classes, given
            that it is one of them.
        labelled: Whether the labels are the data's.
    """

    ids: tuple[str, ...]
    example: np.ndarray
    position: np.ndarray
    classes: np.ndarray
    outputs: np.ndarray
    pooled: bool
    label: np.ndarray
    column: np.ndarray
    inside: np.ndarray
    squares: np.ndarray
    labelled: bool

    @property
    def real(self) -> bool:
        """Whether this is a regression."""
        return self.label.ndim == 2


@dataclass(frozen=True, eq=False)
class Question:
    """A checked batch and the classes asked about.

    Attributes:
        prepared: The batch, covered by the Fisher's parameters.
        labelled: Whether its labels are the data's.
        chosen: Classes given, or ``None`` for the most likely ones.
        k: Number of classes told apart.
        pooled: Whether the others are one more.
        groups: Batches.
        starts: Example id to its first row.
    """

    prepared: Prepared
    labelled: bool
    chosen: tuple[int, ...] | None
    k: int
    pooled: bool
    groups: list[list[Example]]
    starts: dict[str, int]

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.k + self.pooled

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(self.prepared.likelihood.tokens(e) for e in self.prepared.examples)

    def answer(self, classes: np.ndarray | None = None) -> Rows:
        """Run the model forward.

        Args:
            classes: Classes of each row; default: ``None``, as asked.

        Returns:
            One row per supervised token. An output that is not finite raises
            ``NonFiniteError`` with the example's id.
        """
        likelihood = self.prepared.likelihood
        real, n, c = likelihood.name == "regression", self.size, self.width
        numbers = {e.id: i for i, e in enumerate(self.prepared.examples)}
        found = {
            "example": np.zeros(n, np.int64),
            "position": np.zeros(n, np.int64),
            "classes": np.zeros((n, self.k), np.int64),
            "outputs": np.zeros((n, c)),
            "label": np.zeros((n, c) if real else n, np.float64 if real else np.int64),
            "column": np.zeros(n, np.int64),
            "inside": np.zeros(n),
            "squares": np.zeros(n),
        }

        def take(rows: OutputRows) -> None:
            at = np.array([self.starts[i] for i in rows.ids]) + rows.ranks.numpy()
            if not bool(torch.isfinite(rows.outputs).all()):
                bad = int((~torch.isfinite(rows.outputs).all(1)).nonzero()[0])
                raise NonFiniteError(
                    f"the output of example {rows.ids[bad]!r} is not finite; look at this example"
                )
            own = None if classes is None else torch.from_numpy(classes[at]).to(rows.outputs.device)
            parts = _regression(rows) if real else self._categorical(rows, own)
            parts["example"] = torch.tensor([numbers[i] for i in rows.ids])
            parts["position"] = rows.positions + likelihood.causal
            for name, value in parts.items():
                found[name][at] = value.cpu().numpy()

        p = self.prepared
        supervised_outputs(p.model, likelihood, p.coverage, self.groups, take)
        return Rows(ids=tuple(numbers), pooled=self.pooled, labelled=self.labelled, **found)

    def _categorical(self, rows: OutputRows, classes: Tensor | None) -> dict[str, Tensor]:
        logits = rows.outputs.double()
        if classes is None and self.chosen is not None:
            classes = torch.tensor(self.chosen, device=logits.device).expand(len(logits), -1)
        if classes is None and not self.pooled:
            classes = torch.arange(self.k, device=logits.device).expand(len(logits), -1)
        if classes is None:
            classes = logits.topk(self.k, -1).indices
        found = {"classes": classes, "label": rows.targets}
        outputs = logits.gather(-1, classes)
        hit = classes == rows.targets.unsqueeze(-1)
        column = hit.long().argmax(-1)
        if self.labelled and not self.pooled and not bool(hit.any(-1).all()):
            bad = int((~hit.any(-1)).nonzero()[0])
            raise DataError(
                f"example {rows.ids[bad]!r}: the label {int(rows.targets[bad])} is not among "
                f"candidates={list(self.chosen or ())}; add it, or mask the position with -100"
            )
        if self.pooled:
            rest = logits.scatter(-1, classes, -torch.inf)
            whole = rest.logsumexp(-1, keepdim=True)
            outputs = torch.cat([outputs, whole], -1)
            outside = ~hit.any(-1)
            column = torch.where(outside, self.k, column)
            own = (rest - whole).gather(-1, rows.targets.unsqueeze(-1)).squeeze(-1)
            found["inside"] = torch.where(outside, own, 0.0)
            found["squares"] = (rest - whole).exp().square().sum(-1)
        return found | {"outputs": outputs, "column": column}


def _regression(rows: OutputRows) -> dict[str, Tensor]:
    values = torch.arange(rows.outputs.shape[1]).expand(len(rows.ids), -1)
    return {"classes": values, "outputs": rows.outputs, "label": rows.targets}


def ask(
    model: nn.Module,
    fisher: Fisher,
    data: Any,
    candidates: int | Sequence[int] | None,
    batch_size: int | None,
) -> Question:
    """Check a batch and the classes asked about.

    Args:
        model: The model.
        fisher: Whose parameters vary.
        data: The batch.
        candidates: As in :func:`fisherscope.uncertainty`.
        batch_size: Examples per pass; ``None`` packs by tokens and classes.

    Returns:
        The question. Bad data raise as in :func:`fisherscope.estimate`.
    """
    config = FisherConfig(
        fisher_type="mc",  # so that classes need no labels
        likelihood=fisher.identity.likelihood,
        parameters=[glob.escape(name) for name in fisher.identity.parameters],
        batch_size=batch_size,
    )
    with torch.random.fork_rng(devices=[]):
        rows = examples(data)
    likelihood = resolve(model, fisher.identity.likelihood, rows)
    labelled = all(e.labels is not None for e in likelihood.complete(rows, sampled=False))
    if not labelled and likelihood.name == "regression" and all(e.labels is None for e in rows):
        with undisturbed(model), torch.no_grad():
            shape = call_model(model, make_batch(model, rows[:1])).shape[1:]
        rows = [Example(e.id, e.inputs, torch.zeros(shape)) for e in rows]
    prepared = prepare(model, rows, config)
    width = prepared.coverage.width
    chosen, k, pooled = _classes(candidates, width, prepared.likelihood.name)
    # A backward pass holds one cotangent per class, so batches shrink as classes grow.
    groups = batches(prepared.examples, batch_size, max(1, _TOKENS // (k + 1)))
    starts, start = {}, 0
    for example in prepared.examples:
        starts[example.id] = start
        start += prepared.likelihood.tokens(example)
    return Question(
        prepared=prepared,
        labelled=labelled,
        chosen=chosen,
        k=k,
        pooled=pooled,
        groups=groups,
        starts=starts,
    )


def _classes(
    candidates: int | Sequence[int] | None, width: int, name: str
) -> tuple[tuple[int, ...] | None, int, bool]:
    if name == "regression":
        if candidates is not None:
            raise ParameterError("candidates= are classes, and a regression has none; leave it out")
        return None, width, False
    if candidates is None:
        candidates = MOST_LIKELY if name.endswith("lm") else width
    if isinstance(candidates, int) and not isinstance(candidates, bool):
        if candidates < 1:
            raise ParameterError(f"candidates={candidates!r}: ask about at least one class")
        return None, min(candidates, width), candidates < width
    named = isinstance(candidates, Sequence) and not isinstance(candidates, str)
    chosen: tuple[int, ...] = tuple(candidates) if named else ()  # type: ignore[arg-type]
    for place, one in enumerate(chosen):
        check_whole(f"candidates[{place}]", one, low=0, most=width - 1)
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise ParameterError(
            f"candidates={candidates!r}: pass a number of most likely classes, or two or more "
            "different classes"
        )
    return chosen, len(chosen), False

"""What the model says about a label: log-probability, its derivative, and draws.

Every likelihood works on *rows*: ``logits`` [rows, classes] and ``targets`` [rows]
(regression: ``outputs`` and ``targets`` [rows, values]); a row is one token. Where rows
come from in a batch is decided by :meth:`Likelihood.targets`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.data import Batch, Example
from fisherscope.errors import DataError, LikelihoodError
from fisherscope.labels import Column, Drawn, Logit, Rest, Signs, Wanted, root, slope

IGNORE = -100
NAMES = ("causal-lm", "masked-lm", "classification", "regression")


class Likelihood(ABC):
    """One family of label distributions.

    Attributes:
        name: Word used in identities and on the command line.
        tokenwise: Whether an example has one row per position (language models) or one
            row in all.
        causal: Whether no position sees a later one.
    """

    name: str
    tokenwise: bool
    causal: ClassVar[bool] = False

    @abstractmethod
    def targets(self, batch: Batch) -> Tensor:
        """Targets aligned with the model's output: [batch, positions] or [batch, ...].

        Args:
            batch: Examples with labels.

        Returns:
            Class indices with -100 where unsupervised, or real values.
        """

    @abstractmethod
    def evaluate(
        self, outputs: Tensor, targets: Tensor, wanted: Sequence[Wanted] = ()
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Loss and score of every row, for the data's labels or for the model's own.

        ``loss = −log p(target)`` in nats, and for each set of labels
        ``derivative = ∂(−log p(label))/∂outputs``, both zero in unsupervised rows.

        Args:
            outputs: [rows, classes] or [rows, values], fp32 or better; may be overwritten.
            targets: [rows] or [rows, values].
            wanted: What takes the place of the data's labels, see
                :mod:`fisherscope.labels`. Default: nothing, the labels are the data's.

        Returns:
            The loss of the data's labels [rows], and one pair (labels, derivative) for
            each thing wanted, or a single one for the data's labels. The labels of signs
            and columns are the data's: these have none of their own.
        """

    def outputs(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The model's output with the shape that the targets ask for.

        Args:
            outputs: What the model returned.
            targets: From :meth:`targets`.

        Returns:
            [batch, positions, classes] or [batch, classes].

        Raises:
            LikelihoodError: If the shapes do not fit.
        """
        rows = targets.shape if self.tokenwise else targets.shape[:1]
        if outputs.shape[:-1] != rows:
            raise LikelihoodError(
                f"{self.name}: the model returned outputs of shape {tuple(outputs.shape)} for "
                f"targets of shape {tuple(targets.shape)}; choose another likelihood= "
                f"({', '.join(NAMES)}) or fix the labels"
            )
        return outputs

    def check_width(self, examples: Sequence[Example], width: int) -> None:
        """Refuse labels that the model has no output for.

        Args:
            examples: Labelled examples.
            width: Last dimension of the model's output.

        Raises:
            LikelihoodError: If a class is beyond the model's; names the example.
        """
        for example in examples:
            labels = example.labels
            if labels is None or labels.is_floating_point() or not labels.numel():
                continue
            if int(labels.max()) >= width:
                raise LikelihoodError(
                    f"example {example.id!r}: label {int(labels.max())}, but the model has "
                    f"{width} classes (0 to {width - 1}); fix the labels or load the right head"
                )

    def tokens(self, example: Example) -> int:
        """Number of supervised label positions of one example.

        Args:
            example: Any example with labels.

        Returns:
            A count; 0 means that the example says nothing.
        """
        del example
        return 1

    def complete(self, examples: Sequence[Example], *, sampled: bool) -> list[Example]:
        """Fill in labels that follow from the inputs.

        Args:
            examples: Examples with or without labels.
            sampled: Whether labels are drawn from the model, so that the data's are not
                needed.

        Returns:
            The examples, unchanged where they have labels or nothing can be filled in.
        """
        del sampled
        return list(examples)

    def check(self, examples: Sequence[Example], model: nn.Module) -> None:
        """Validate labels and ids before any forward pass.

        Args:
            examples: The whole data set.
            model: Its input embedding tells the vocabulary.

        Raises:
            DataError: If an example has no labels, no supervised token, or an id that the
                model does not know.
        """
        vocabulary = _vocabulary(model)
        for example in examples:
            if example.labels is None:
                raise DataError(
                    f"example {example.id!r} has no labels; {self.name} needs them to define "
                    "the score (add 'labels', or a label column)"
                )
            ids = example.inputs.get("input_ids")
            if vocabulary is not None and ids is not None and ids.numel():
                _check_ids(example.id, ids, vocabulary, "input_ids")
        if not any(self.tokens(example) for example in examples):
            raise DataError(
                f"all labels of all {len(examples)} examples are masked (-100): there is no "
                "supervised token to estimate from; check prompts, padding and max_length"
            )


def _vocabulary(model: nn.Module) -> int | None:
    getter = getattr(model, "get_input_embeddings", None)
    try:
        table = getter() if callable(getter) else None
    except NotImplementedError:
        table = None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _check_ids(example: str, ids: Tensor, vocabulary: int, what: str) -> None:
    bad = (ids < 0) | (ids >= vocabulary)
    if bad.any():
        value = int(ids[bad].flatten()[0])
        raise DataError(
            f"example {example!r}: {what} holds the token id {value}, beyond the model's "
            f"vocabulary of {vocabulary}; the tokenizer does not belong to this model"
        )


class Categorical(Likelihood):
    """One class out of many per row: softmax of the logits."""

    def evaluate(  # noqa: D102
        self, outputs: Tensor, targets: Tensor, wanted: Sequence[Wanted] = ()
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        supervised = targets != IGNORE
        index = targets.clamp_min(0).unsqueeze(-1)
        # The normaliser from the largest entry, whose probability is at least 1/classes: as
        # exact as a log-sum-exp, and the exponentials are taken only once.
        largest, place = outputs.max(-1, keepdim=True)
        p = torch.softmax(outputs, -1)
        normaliser = largest - p.gather(-1, place).log()
        loss = (normaliser - outputs.gather(-1, index)).squeeze(-1).masked_fill(~supervised, 0.0)
        if not bool(supervised.all()):
            p[~supervised] = 0.0
        minus = -supervised.to(p.dtype).unsqueeze(-1)
        if not wanted:
            return loss, [(targets, p.scatter_add_(-1, index, minus))]
        cumulative = p.cumsum(-1) if any(isinstance(w, Drawn) for w in wanted) else p
        sets = []
        for number, what in enumerate(wanted):
            if isinstance(what, (Logit, Rest)):
                own = supervised.unsqueeze(-1)
                sets.append((targets, slope(outputs, what).mul_(own)))
                continue
            if not isinstance(what, Drawn):
                sets.append((targets, root(p, what)))
                continue
            # Scaling by the last entry keeps the draw inside the table whatever the rounding.
            # Kept below it, or a uniform that rounds to one would draw an impossible class.
            last = cumulative[..., -1:]
            threshold = torch.minimum(
                what.uniforms.to(p).unsqueeze(-1) * last,
                torch.nextafter(last, torch.zeros_like(last)),
            )
            drawn = torch.searchsorted(cumulative, threshold, right=True)
            drawn.clamp_(max=outputs.shape[-1] - 1)
            labels = torch.where(supervised, drawn.squeeze(-1), targets)
            derivative = p if number == len(wanted) - 1 else p.clone()
            sets.append((labels, derivative.scatter_add_(-1, drawn, minus)))
        return loss, sets


class CausalLM(Categorical):
    """Next-token prediction: the label of position t is scored by the logits of t − 1."""

    name = "causal-lm"
    tokenwise = True
    causal = True

    def complete(self, examples: Sequence[Example], *, sampled: bool) -> list[Example]:
        """Every real token of an example without labels is supervised.

        Args:
            examples: Examples with or without labels.
            sampled: Unused: drawn labels are drawn where labels are supervised.

        Returns:
            Examples with labels, wherever there are ``input_ids``.
        """
        del sampled
        return [e if e.labels is not None else _next_tokens(e) for e in examples]

    def targets(self, batch: Batch) -> Tensor:  # noqa: D102
        assert batch.labels is not None
        return F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)

    def tokens(self, example: Example) -> int:  # noqa: D102
        assert example.labels is not None
        return int((example.labels[1:] != IGNORE).sum())

    def check(self, examples: Sequence[Example], model: nn.Module) -> None:  # noqa: D102
        super().check(examples, model)
        _check_tokenwise(self.name, examples, _vocabulary(model))


def _next_tokens(example: Example) -> Example:
    ids = example.inputs.get("input_ids")
    if ids is None and set(example.inputs) == {"0"}:
        ids = example.inputs["0"]  # a bare tensor of token ids
        example = replace(example, inputs={"input_ids": ids})
    if ids is None or ids.is_floating_point() or ids.ndim != 1:
        return example
    mask = example.inputs.get("attention_mask")
    labels = ids.long()
    return replace(
        example, labels=labels if mask is None else labels.masked_fill(mask == 0, IGNORE)
    )


class MaskedLM(Categorical):
    """Cloze prediction: the label of position t is scored by the logits of t."""

    name = "masked-lm"
    tokenwise = True

    def targets(self, batch: Batch) -> Tensor:  # noqa: D102
        assert batch.labels is not None
        return batch.labels

    def tokens(self, example: Example) -> int:  # noqa: D102
        assert example.labels is not None
        return int((example.labels != IGNORE).sum())

    def check(self, examples: Sequence[Example], model: nn.Module) -> None:  # noqa: D102
        super().check(examples, model)
        _check_tokenwise(self.name, examples, _vocabulary(model))


def _check_tokenwise(name: str, examples: Sequence[Example], vocabulary: int | None) -> None:
    for example in examples:
        labels, ids = example.labels, example.inputs.get("input_ids")
        assert labels is not None
        if ids is not None and labels.shape != ids.shape:
            raise DataError(
                f"example {example.id!r}: labels of shape {tuple(labels.shape)} for input_ids of "
                f"shape {tuple(ids.shape)}; {name} needs one label per token (-100: unsupervised)"
            )
        known = labels[labels != IGNORE]
        if known.numel():
            most = vocabulary if vocabulary is not None else int(known.max()) + 1
            _check_ids(example.id, known, most, "labels")


class Classification(Categorical):
    """One class per example."""

    name = "classification"
    tokenwise = False

    def complete(self, examples: Sequence[Example], *, sampled: bool) -> list[Example]:
        """Drawn labels need no labels in the data.

        Args:
            examples: Examples with or without labels.
            sampled: Whether labels are drawn from the model.

        Returns:
            The examples; for drawn labels, missing ones get class 0 as a placeholder.
        """
        if not sampled:
            return list(examples)
        missing = torch.zeros((), dtype=torch.long)
        return [e if e.labels is not None else replace(e, labels=missing) for e in examples]

    def targets(self, batch: Batch) -> Tensor:  # noqa: D102
        assert batch.labels is not None
        return batch.labels.reshape(len(batch.ids))

    def tokens(self, example: Example) -> int:  # noqa: D102
        assert example.labels is not None
        return int((example.labels != IGNORE).sum())

    def check(self, examples: Sequence[Example], model: nn.Module) -> None:  # noqa: D102
        super().check(examples, model)
        for example in examples:
            labels = example.labels
            assert labels is not None
            if labels.numel() != 1 or labels.is_floating_point():
                raise DataError(
                    f"example {example.id!r}: classification needs one integer label, got "
                    f"{labels.dtype} of shape {tuple(labels.shape)}; use likelihood='regression' "
                    "for real targets"
                )
            if int(labels) != IGNORE and int(labels) < 0:
                raise DataError(
                    f"example {example.id!r}: label {int(labels)} is negative; classes count from "
                    "0, and -100 means unsupervised"
                )


class Regression(Likelihood):
    """Gaussian with unit variance: ``−log p = ½‖y − f‖² + ½k·log 2π``, k values per example."""

    name = "regression"
    tokenwise = False

    def targets(self, batch: Batch) -> Tensor:  # noqa: D102
        assert batch.labels is not None
        return batch.labels.reshape(len(batch.ids), -1)

    def evaluate(  # noqa: D102
        self, outputs: Tensor, targets: Tensor, wanted: Sequence[Wanted] = ()
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        targets = targets.to(outputs)
        constant = 0.5 * outputs.shape[-1] * math.log(2 * math.pi)
        loss = 0.5 * (outputs - targets).square().sum(-1) + constant
        if not wanted:
            return loss, [(targets, outputs - targets)]
        tiny = torch.finfo(torch.float64).tiny
        sets = []
        for what in wanted:
            if isinstance(what, Drawn):
                noise = torch.special.ndtri(what.uniforms.double().clamp_min(tiny)).to(outputs)
                sets.append((outputs + noise, -noise))
            elif isinstance(what, Signs):
                sets.append((targets, 1.0 - 2.0 * (what.uniforms >= 0.5).to(outputs)))
            elif not isinstance(what, Column):
                raise LikelihoodError("regression has no logits; use labels.Column")
            else:
                column = torch.zeros_like(outputs)
                column[..., what.number] = 1.0
                sets.append((targets, column))
        return loss, sets

    def outputs(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        if outputs.ndim == 1:
            outputs = outputs.unsqueeze(-1)
        if outputs.shape != targets.shape:
            raise LikelihoodError(
                f"regression: the model returned {tuple(outputs.shape)} for targets of shape "
                f"{tuple(targets.shape)}; give one real target per output"
            )
        return outputs

"""Are conflicts real? Fine-tuning without the most conflicting examples, and without others."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from fisherscope.analysis.outcomes import outcomes
from fisherscope.data import Example, batches, halves
from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.errors import DataError, ParameterError
from fisherscope.preparation import Prepared, prepare
from fisherscope.results import Result
from fisherscope.studies.conflict.conflict import MEMORY, Conflict, conflict
from fisherscope.studies.conflict.metric import NATURAL, PLAIN, Fishers
from fisherscope.studies.seeds import over_seeds
from fisherscope.studies.tuning import Schedule, fine_tune, row_batches

ON, BY = "on", "by"
CONFLICTING, RANDOM, HELPFUL = "conflicting", "random", "helpful"
ARMS = (CONFLICTING, HELPFUL)
# A random example takes the place of one with about as many tokens: one of so many nearest.
_NEAREST = 10


@dataclass(frozen=True, eq=False)
class Removal(Result):
    """Losses after fine-tuning on task B without some of its examples.

    Attributes:
        runs: A row per seed and arm (which examples were left out: the most ``"conflicting"``
            ones, the most ``"helpful"`` ones, or ``"random"`` ones): ``loss_on`` and
            ``loss_by`` in nats per token, ``removed`` examples and their ``tokens``, ``steps``
            taken, ``outcome`` (``"ok"`` or ``"diverged"``).
        differences: Each arm minus the random one, for the loss of A (``"on"``) and of B
            (``"by"``): mean over seeds with a paired 95% t-interval, ``outcome``: ``"better"``
            (below zero), ``"worse"``, ``"not_resolved"``, ``"too_few_seeds"``.
        before: Losses before fine-tuning.
        order: Ids of B, the most conflicting first.
        scores: Id to score: minus the product of A's mean gradient (per token) and the
            example's gradient (summed), in the metric.
        removed: How many examples are left out.
        metric: ``"plain"`` or ``"natural"``.
        conflict: What the order was computed from.
    """

    runs: pd.DataFrame
    differences: pd.DataFrame
    before: dict[str, float]
    order: tuple[str, ...]
    scores: dict[str, float]
    removed: int
    metric: str
    conflict: Conflict

    def to_frame(self) -> pd.DataFrame:
        """The differences.

        Returns:
            A new data frame.
        """
        return self.differences.copy()


@torch.inference_mode(False)
def removal(
    model: nn.Module,
    on: Any,
    by: Any,
    *,
    held_out: Any,
    remove: int,
    schedule: Schedule,
    batch_rows: int = 16,
    seeds: Sequence[int] = tuple(range(8)),
    arms: Sequence[str] = ARMS,
    at: nn.Module | None = None,
    metric: str = NATURAL,
    fishers: Fishers | None = None,
    likelihood: str = DEFAULTS.likelihood,
    memory_limit: int | str = MEMORY,
    seed: int = DEFAULTS.seed,
    progress: bool = False,
) -> Removal:
    r"""Fine-tune on B without its most conflicting examples, and without as many others.

    Examples of A are halved by content: the conflicts are computed on one half and the loss is
    measured on the other. B is ordered by what an example adds to a step's first-order harm,
    :math:`-\langle \bar g_A, g_b\rangle` with the gradient of the *whole* example, since
    fine-tuning weighs tokens alike. Every seed leaves out other random examples, each drawn from
    all of B among the ten nearest in tokens to one of the conflicting (so that the arms differ
    neither in examples nor, much, in tokens). Arms of a seed take the same number of steps
    and share the generator's seed. The opposite arm, without the most helpful examples, should
    come out opposite.

    Args:
        model: The model to start from; it comes back untouched.
        on: Task A, that is to be kept; as in :func:`fisherscope.estimate`.
        by: Task B's training examples.
        held_out: Examples of B to measure its loss on.
        remove: How many examples to leave out, less than B has.
        schedule: Steps and rates of the fine-tuning.
        batch_rows: Examples per batch. Default: 16.
        seeds: Of the fine-tunings and of the random choices. Default: 0 to 7.
        arms: What to leave out besides random examples: ``"conflicting"``, ``"helpful"``.
            Default: both.
        at: Where conflicts are computed: for instance a copy that was fine-tuned on all of B, as
            gradients where the forgetting happens say more than those where it begins. Default:
            ``None``, at ``model``.
        metric: ``"plain"``, or ``"natural"``, which is nearer to what AdamW does with a
            gradient. Default: ``"natural"``.
        fishers: As in :func:`conflict`. Default: ``None``, estimated.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        memory_limit: As in :func:`conflict`. Default: 2 GiB.
        seed: Of the conflict. Default: 0.
        progress: Show progress bars. Default: ``False``.

    Returns:
        Losses and paired differences.

    Raises:
        ParameterError: If ``remove``, ``arms``, ``seeds`` or ``metric`` makes no sense.
        DataError: If A is too small to be halved.
    """
    if metric not in (PLAIN, NATURAL):
        raise ParameterError(f"metric={metric!r} is unknown; use {PLAIN!r} or {NATURAL!r}")
    if not arms or set(arms) - set(ARMS) or len(set(arms)) != len(arms):
        raise ParameterError(f"arms={list(arms)}: choose among {', '.join(map(repr, ARMS))}")
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ParameterError(f"seeds={list(seeds)}: give one or more different seeds")
    config = FisherConfig(likelihood=likelihood)
    ready = {
        name: prepare(model, data, config)
        for name, data in ((ON, on), (BY, by), ("held_out", held_out))
    }
    training = ready[BY].examples
    if isinstance(remove, bool) or not isinstance(remove, int) or not 0 < remove < len(training):
        raise ParameterError(
            f"remove={remove!r}: leave out at least one of the {len(training)} examples of by=, "
            "and not all of them"
        )
    if len(ready[ON].examples) < 4:
        raise DataError(
            f"on= has {len(ready[ON].examples)} examples: pass at least four, half of them to find "
            "conflicts and half to measure the loss"
        )
    first, second = halves(ready[ON].examples)
    found = conflict(
        model if at is None else at,
        {ON: first, BY: training},
        fishers=fishers,
        likelihood=likelihood,
        memory_limit=memory_limit,
        seed=seed,
        progress=progress,
    )
    scores = _scores(found, metric, training, ready[BY])
    order = sorted(scores, key=lambda i: (-scores[i], i))
    measured = {ON: (ready[ON], second), BY: (ready["held_out"], ready["held_out"].examples)}
    runs = []
    for number in tqdm(seeds, desc="fine-tunings", unit="seed", disable=not progress):
        cuts = _arms(order, remove, training, ready[BY], number)
        for arm in (*arms, RANDOM):
            out = cuts[arm]
            runs.append({
                "seed": number,
                "arm": arm,
                **_run(model, training, out, ready[BY], measured, schedule, batch_rows, number),
            })
    frame = pd.DataFrame(runs)
    return Removal(
        runs=frame,
        differences=differences(frame),
        before={name: _loss(model, *what) for name, what in measured.items()},
        order=tuple(order),
        scores=scores,
        removed=remove,
        metric=metric,
        conflict=found,
    )


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Every arm minus the random one, paired by seed.

    Args:
        runs: As :class:`Removal` has them.

    Returns:
        A row per arm and loss.
    """
    rows = []
    for name in (ON, BY):
        wide = runs.pivot(index="seed", columns="arm", values=f"loss_{name}")
        for arm in wide.columns.drop(RANDOM):
            gap = over_seeds((wide[arm] - wide[RANDOM]).to_numpy())
            rows.append({
                "arm": arm,
                "loss": name,
                "value": gap.value,
                "low": gap.low,
                "high": gap.high,
                "n_seeds": gap.n,
                "unit": "nats per token",
                "outcome": gap.verdict,
            })
    return pd.DataFrame(rows)


def _scores(
    found: Conflict, metric: str, training: Sequence[Example], prepared: Prepared
) -> dict[str, float]:
    table = found.examples
    table = table[(table["on"] == ON) & (table["by"] == BY) & (table["metric"] == metric)]
    if table.empty:
        raise DataError(
            "too few examples to find conflicts among: pass at least five of by= and ten of on="
        )
    harm = dict(zip(table["example"], table["harm"], strict=True))
    return {e.id: harm[e.id] * prepared.likelihood.tokens(e) for e in training}


def _arms(
    order: Sequence[str], k: int, training: Sequence[Example], prepared: Prepared, seed: int
) -> dict[str, set[str]]:
    tokens = {e.id: prepared.likelihood.tokens(e) for e in training}
    return {
        CONFLICTING: set(order[:k]),
        RANDOM: matched(order[:k], tokens, seed),
        HELPFUL: set(order[-k:]),
    }


def matched(chosen: Sequence[str], tokens: Mapping[str, int], seed: int) -> set[str]:
    """As many random examples with about as many tokens, from all that there are.

    Args:
        chosen: Examples to stand in for.
        tokens: Id of every example to tokens.
        seed: Of the choice.

    Returns:
        Their ids.
    """
    rng = np.random.default_rng(seed)
    free = sorted(tokens)
    out: set[str] = set()
    for i in rng.permutation(np.array(chosen, dtype=object)):
        near = sorted(free, key=lambda j: (abs(tokens[j] - tokens[i]), rng.random()))[:_NEAREST]
        out.add(near[int(rng.integers(len(near)))])
        free = [j for j in free if j not in out]
    return out


def _run(
    model: nn.Module,
    training: Sequence[Example],
    out: set[str],
    prepared: Prepared,
    measured: Mapping[str, tuple[Prepared, Sequence[Example]]],
    schedule: Schedule,
    batch_rows: int,
    seed: int,
) -> dict[str, Any]:
    tuned = copy.deepcopy(model)
    kept = [e for e in training if e.id not in out]
    losses = fine_tune(
        tuned,
        row_batches(kept, batch_rows),
        schedule,
        likelihood=prepared.likelihood,
        seed=seed,
        progress=False,
    )
    diverged = not math.isfinite(losses[-1])
    found = {
        f"loss_{name}": math.nan if diverged else _loss(tuned, *what)
        for name, what in measured.items()
    }
    return {
        **found,
        "removed": len(out),
        "tokens": sum(prepared.likelihood.tokens(e) for e in training if e.id in out),
        "steps": len(losses),
        "outcome": "diverged" if diverged else "ok",
    }


def _loss(model: nn.Module, prepared: Prepared, rows: Sequence[Example]) -> float:
    frame = outcomes(model, prepared.likelihood, batches(rows))[""]
    return float(frame["loss"].to_numpy().sum() / frame["tokens"].to_numpy().sum())

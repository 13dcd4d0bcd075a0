"""Several models in one study, and which of two is the more robust."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from fisherscope.errors import IdentityError, ParameterError, TaskError
from fisherscope.studies.percolation.functional import Curve
from fisherscope.studies.percolation.pairing import COMPARED, paired
from fisherscope.studies.percolation.result import MODEL, TABLES, Percolation
from fisherscope.studies.percolation.threshold import fall, labels


def compare_percolation(studies: Mapping[str, Percolation]) -> Percolation:
    r"""Put studies of several models (base and instruct, checkpoints, widths) side by side.

    For every two models, order and task the quantities are compared in pairs: every draw of the
    bootstrap takes the same examples for both, and the same repetitions. ``midpoint`` is compared
    by the ratio :math:`f_c(b) / f_c(a)`, ``robustness`` by the difference :math:`b - a`. An order
    is read from each model's own Fisher, and watched on the task that it was read from.

    Args:
        studies: Model name to its study, in the order of comparison; all over the same examples
            and with the same seed, from :func:`fisherscope.percolation`.

    Returns:
        One study over all models: every table with its ``model``, and ``differences`` with a row
        per two models, order, task and quantity. Its ``verdict`` is ``resolved`` if the 95%
        interval leaves out 1 (ratio) or 0 (difference); the intervals are not corrected for how
        many comparisons there are.

    Raises:
        ParameterError: If there are fewer than two studies, one of them already holds several
            models, seeds differ, or no order is in both.
        TaskError: If two studies watch other tasks.
        IdentityError: If a task has other examples in two studies.

    Example:
        >>> both = fs.compare_percolation({"base": one, "instruct": two})  # doctest: +SKIP
        >>> both.differences[["order", "on", "quantity", "value", "verdict"]]  # doctest: +SKIP
    """  # noqa: DOC502 (raised by the checks)
    check_same(studies)
    frames: dict[str, pd.DataFrame] = {}
    for table in TABLES:
        parts = [
            getattr(study, table).assign(**{MODEL: name})
            for name, study in studies.items()
            if not getattr(study, table).empty
        ]
        frames[table] = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    differences = _differences(studies)
    if not differences:
        raise ParameterError(
            "the studies have no level, removal and order in common; make them with the same "
            "levels=, removal= and orders="
        )
    alone = {name: next(iter(study.measured)) for name, study in studies.items()}
    return Percolation(
        **frames,
        differences=pd.DataFrame(differences),
        plan={name: study.plan[alone[name]] for name, study in studies.items()},
        notes=tuple(f"{name}: {note}" for name, study in studies.items() for note in study.notes),
        seed=next(iter(studies.values())).seed,
        measured={name: study.measured[alone[name]] for name, study in studies.items()},
        tasks={name: study.tasks[alone[name]] for name, study in studies.items()},
    )


def check_same(studies: Mapping[str, Percolation]) -> None:
    """Make sure that studies can be compared in pairs.

    Args:
        studies: Model name to its study.

    Raises:
        ParameterError: If there are fewer than two studies of one model each, or seeds differ;
            other tasks are a ``TaskError``, other examples an ``IdentityError``.
    """
    if not isinstance(studies, Mapping) or len(studies) < 2:
        raise ParameterError(
            "studies must map at least two names to studies, such as {'base': one, 'instruct': "
            "two}, each from fs.percolation"
        )
    for name, study in studies.items():
        if not isinstance(study, Percolation):
            raise ParameterError(
                f"studies[{name!r}] is a {type(study).__name__}; pass what fs.percolation returns"
            )
        if len(study.measured) != 1:
            raise ParameterError(
                f"studies[{name!r}] holds {len(study.measured)} models; pass studies of one each"
            )
    first, *others = studies
    for name in others:
        _check_pair(first, studies[first], name, studies[name])


def _check_pair(first: str, a: Percolation, name: str, b: Percolation) -> None:
    if a.seed != b.seed:
        raise ParameterError(
            f"the studies of {first!r} and {name!r} have seeds {a.seed} and {b.seed}, so they "
            "can't be compared in pairs; use the same seed="
        )
    (mine,), (theirs,) = a.tasks.values(), b.tasks.values()
    if odd := sorted(set(mine) ^ set(theirs)):
        raise TaskError(
            f"task {odd[0]!r} is in one of the studies of {first!r} and {name!r} only; watch the "
            "same tasks"
        )
    for task, one in mine.items():
        other = theirs[task]
        same = one.ids == other.ids and bool((one.tokens == other.tokens).all())
        if not same or (
            one.prepared.identity.data_fingerprint != other.prepared.identity.data_fingerprint
        ):
            raise IdentityError(
                f"task {task!r} has other examples in the studies of {first!r} and {name!r}; pairs "
                "need the same ones (and the same tokenizer)"
            )


def _differences(studies: Mapping[str, Percolation]) -> list[dict[str, Any]]:
    rows = []
    for a, b in itertools.combinations(studies, 2):
        one, two = studies[a], studies[b]
        (mine,), (theirs,) = one.measured.values(), two.measured.values()
        (tasks,), (others,) = one.tasks.values(), two.tasks.values()
        for curve in mine:
            twin = next((c for c in theirs if labels(c) == labels(curve)), None)
            if twin is None:
                continue
            for on in _own(curve, list(tasks)):
                falls = fall(curve, tasks[on], one.seed), fall(twin, others[on], one.seed)
                head = {"model_a": a, "model_b": b, **labels(curve), "on": on}
                rows += [head | {"quantity": q} | paired(q, *falls) for q in COMPARED]
    return rows


def _own(curve: Curve, tasks: list[str]) -> list[str]:
    return [curve.by] if curve.by in tasks else tasks

"""A study's input, checked before anything takes its time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from fisherscope.analysis.access import own_weights
from fisherscope.analysis.masks import Scope
from fisherscope.arguments import (
    check_choice,
    check_list,
    check_mapping,
    check_number,
    check_whole,
)
from fisherscope.data import Example, content_hash, content_id, fingerprint, halves
from fisherscope.defaults import FisherConfig
from fisherscope.distributed import unwrapped
from fisherscope.errors import DataError, IdentityError, ParameterError, TaskError
from fisherscope.preparation import Prepared, prepare
from fisherscope.structures import DiagonalFisher, Fisher
from fisherscope.structures.pooled import of_run
from fisherscope.studies.remedies.arms import REMEDIES, Strengths
from fisherscope.studies.tuning import Schedule

MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every fine-tuning of a study has in common.

    Attributes:
        model: The model to start from.
        name: The new task.
        learn: Checked request of its training examples.
        watch: Task to the examples that losses are measured on; the new task is one of them.
        protect: Old task to the examples that Fishers and predictions are made from.
        movable: Names of the parameters that require a gradient, tied ones once.
        given: Fishers of the old tasks that were passed, or ``None``.
        arms: Remedies to try.
        strengths: How much of each.
        schedule: Steps and rates.
        seeds: Of the fine-tunings.
        batch_rows: Examples per training batch.
        every: Steps between measurements.
        levels: Shares of what plain fine-tuning gains, at which tasks are compared.
        config: How Fishers are estimated.
        fisher_rows: Most examples of a task that Fishers and predictions are made from.
    """

    model: nn.Module
    name: str
    learn: Prepared
    watch: Mapping[str, Sequence[Example]]
    protect: Mapping[str, Sequence[Example]]
    movable: tuple[str, ...]
    given: Mapping[str, Fisher] | None
    arms: tuple[str, ...]
    strengths: Strengths
    schedule: Schedule
    seeds: tuple[int, ...]
    batch_rows: int
    every: int
    levels: tuple[float, ...]
    config: FisherConfig
    fisher_rows: int

    @property
    def old(self) -> tuple[str, ...]:
        """The old tasks."""
        return tuple(task for task in self.watch if task != self.name)

    @property
    def learn_sample(self) -> list[Example]:
        """The training examples that the new task's Fisher and step are made from."""
        return sample(self.learn.examples, self.fisher_rows)

    @property
    def identity(self) -> str:
        """All that a fine-tuning's outcome depends on, as text."""
        given = {task: repr(f.identity) for task, f in (self.given or {}).items()}
        data = [fingerprint(self.learn.examples)]
        data += [
            f"{t}:{fingerprint(rows)}" for t, rows in (*self.watch.items(), *self.protect.items())
        ]
        parts = (
            self.learn.identity.model_fingerprint, data, given, self.strengths, self.schedule,
            self.batch_rows, self.every, self.config, self.fisher_rows, self.movable,
        )  # fmt: skip
        return " | ".join(map(str, parts))


def sample(rows: Sequence[Example], most: int) -> list[Example]:
    """Examples chosen by their content, whatever their order.

    Args:
        rows: Examples.
        most: How many at most.

    Returns:
        Those with the lowest content hashes.
    """
    return sorted(rows, key=lambda row: (content_hash(row), row.id))[:most]


def settle(
    model: nn.Module,
    learn: Any,
    tasks: Mapping[str, Any],
    *,
    held_out: Any,
    protect: Mapping[str, Any] | None,
    fishers: Mapping[str, Fisher] | None,
    name: str,
    arms: Sequence[str],
    strengths: Strengths,
    schedule: Schedule,
    seeds: Sequence[int],
    batch_rows: int,
    every: int,
    levels: Sequence[float],
    fisher_rows: int,
    config: FisherConfig,
) -> Setting:
    """Check a study's arguments and split its data.

    Args:
        model: As for :func:`fisherscope.remedies`, as all others.
        learn: The new task's examples.
        tasks: Old tasks.
        held_out: Measuring rows of the new task, or ``None``.
        protect: Rows for Fishers, or ``None``.
        fishers: Fishers of the old tasks, or ``None``.
        name: What the new task is called.
        arms: Remedies.
        strengths: How much of each.
        schedule: Steps and rates.
        seeds: Seeds.
        batch_rows: Examples per batch.
        every: Steps between measurements.
        levels: Shares of plain fine-tuning's gain.
        fisher_rows: Most examples for Fishers.
        config: How Fishers are estimated.

    Returns:
        The sound input.

    Raises:
        TaskError: If there are no old tasks, or names collide.
        ParameterError: If an option is unusable, or no parameter requires a gradient.
        DataError: If a task has too few examples, or is measured on what it is trained on.
        IdentityError: If a Fisher is of another model, or of the measuring rows.
    """  # noqa: DOC502 (partly raised by callees)
    _check_options(arms, strengths, schedule, seeds, batch_rows, every, levels, fisher_rows)
    _check_tasks(name, tasks, protect, fishers)
    model = unwrapped(model)
    movable = tuple(
        n for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point()
    )
    if not movable:
        raise ParameterError(
            "model has no parameter that requires a gradient, so nothing would be trained; call "
            "model.requires_grad_()"
        )
    known = _read(model, "learn", learn, config)
    if held_out is None:
        train, measured = _halved("learn", known.examples, "pass held_out=, or at least four")
        known = dataclasses.replace(known, examples=train)
    else:
        measured = _read(model, "held_out", held_out, config).examples
        _disjoint("held_out", measured, "learn", known.examples)
    watch: dict[str, Sequence[Example]] = {}
    apart: dict[str, Sequence[Example]] = {}
    for task, data in tasks.items():
        rows = _read(model, f"task {task!r}", data, config).examples
        if protect is None:
            rest = "pass protect= with others, or at least four"
            apart[task], watch[task] = _halved(f"task {task!r}", rows, rest)
        else:
            watch[task] = rows
            apart[task] = _read(model, f"protect[{task!r}]", protect[task], config).examples
            _disjoint(f"task {task!r}", rows, "protect", apart[task])
        apart[task] = sample(apart[task], fisher_rows)
    if len(measured) < 2:
        raise DataError(
            "held_out has one example: whether fine-tuning makes progress is told from the spread "
            "over at least two"
        )
    for task, fisher in (fishers or {}).items():
        _check_fisher(task, fisher, model, movable, watch[task])
    return Setting(
        model=model, name=name, learn=known, watch={**watch, name: measured}, protect=apart,
        movable=movable, given=fishers, arms=tuple(arms), strengths=strengths, schedule=schedule,
        seeds=tuple(seeds), batch_rows=batch_rows, every=every, levels=tuple(sorted(levels)),
        config=config, fisher_rows=fisher_rows,
    )  # fmt: skip


def _check_options(
    arms: Sequence[str],
    strengths: Strengths,
    schedule: Schedule,
    seeds: Sequence[int],
    batch_rows: int,
    every: int,
    levels: Sequence[float],
    fisher_rows: int,
) -> None:
    check_list("arms", arms, f"some of {list(REMEDIES)}")
    if not arms or set(arms) - set(REMEDIES) or len(set(arms)) != len(arms):
        raise ParameterError(f"arms={list(arms)}: choose among {', '.join(map(repr, REMEDIES))}")
    if not isinstance(schedule, Schedule):
        raise ParameterError(
            f"schedule is a {type(schedule).__name__}; pass "
            "fisherscope.studies.tuning.Schedule(steps=..., peak=...)"
        )
    check_whole("schedule.steps", schedule.steps, low=1)
    check_number("schedule.peak", schedule.peak, above=0)
    check_list("seeds", seeds, "different whole numbers")
    for seed in seeds:
        check_whole("seeds", seed, low=0)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ParameterError(f"seeds={list(seeds)}: give one or more different seeds")
    for option, value in (
        ("batch_rows", batch_rows), ("every", every), ("fisher_rows", fisher_rows),
        ("lora_rank", strengths.lora_rank),
    ):  # fmt: skip
        check_whole(option, value, low=1)
    check_list("levels", levels, "shares between 0 and 1")
    if not levels or len(set(levels)) != len(levels):
        raise ParameterError(f"levels={list(levels)}: give one or more different shares")
    for level in levels:
        check_number("levels", level, above=0, most=1)
    for option in ("freeze_share", "mask_share", "lora_share"):
        check_number(option, getattr(strengths, option), above=0, below=1)
    for option in ("strength", "lora_rate"):
        check_number(option, getattr(strengths, option), above=0)
    check_choice("scope", strengths.scope, get_args(Scope))


def _check_tasks(
    name: str,
    tasks: Mapping[str, Any],
    protect: Mapping[str, Any] | None,
    fishers: Mapping[str, Fisher] | None,
) -> None:
    check_mapping("tasks", tasks, "{old task's name: examples}")
    if not tasks:
        raise TaskError("tasks is empty: name at least one old task that is to be kept")
    for task in (name, *tasks):
        if not isinstance(task, str) or not task or task == MEAN:
            raise TaskError(
                f"task name {task!r} can't be used (text, and not {MEAN!r}, which is the row of "
                "their mean); choose another"
            )
    if name in tasks:
        raise TaskError(
            f"{name!r} is the new task and among the old ones; give the new one another name="
        )
    for option, value in (("protect", protect), ("fishers", fishers)):
        if value is None:
            continue
        check_mapping(option, value, "{old task's name: …}")
        if set(value) != set(tasks):
            raise TaskError(
                f"{option} is for {sorted(value)} but the old tasks are {sorted(tasks)}; give one "
                "for each"
            )


def _read(model: nn.Module, what: str, data: Any, config: FisherConfig) -> Prepared:
    # With the data's own labels, which training and measuring need whatever Fishers draw.
    labelled = dataclasses.replace(config, fisher_type="empirical")
    try:
        return prepare(model, data, labelled)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def _halved(what: str, rows: list[Example], instead: str) -> tuple[list[Example], list[Example]]:
    if len(rows) < 4:
        raise DataError(
            f"{what} has {len(rows)} examples, too few for two halves of which one is measured; "
            f"{instead}"
        )
    return halves(rows)


def _disjoint(one: str, rows: Sequence[Example], other: str, others: Sequence[Example]) -> None:
    seen = {content_id(row) for row in others}
    both = [row.id for row in rows if content_id(row) in seen]
    if both:
        raise DataError(
            f"{one} shares {len(both)} example(s) with {other}, such as {both[0]!r}: losses are "
            "measured on rows that nothing else has seen; take them out of one of the two"
        )


def _check_fisher(
    task: str,
    fisher: Fisher,
    model: nn.Module,
    movable: Sequence[str],
    measured: Sequence[Example],
) -> None:
    what = f"fishers[{task!r}]"
    if not isinstance(fisher, DiagonalFisher):
        raise ParameterError(
            f"{what} is a {type(fisher).__name__}; single weights are chosen by it, so estimate "
            'it with structure="diagonal"'
        )
    own_weights(fisher, model, f"remedies(): {what}")
    if of_run(fisher):
        raise IdentityError(
            f"{what} was followed along a run and is of no single model; estimate it at these "
            "weights"
        )
    if missing := [name for name in movable if name not in fisher.identity.parameters]:
        raise ParameterError(
            f"{what} lacks {len(missing)} parameters that are trained, such as {missing[0]!r}; "
            "estimate it on all of them"
        )
    if fisher.identity.data_fingerprint == fingerprint(measured):
        raise IdentityError(
            f"{what} was estimated on the very rows that {task!r} is measured on; estimate it on "
            "others, or leave fishers= out"
        )

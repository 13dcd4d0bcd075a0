"""Old tasks at equal loss of the new one: levels, differences, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fisherscope.studies.course import Course, at_level
from fisherscope.studies.remedies.arms import NULLS, PLAIN
from fisherscope.studies.remedies.setting import MEAN
from fisherscope.studies.seeds import over_seeds

Courses = Mapping[tuple[str, int], Course]
_Z = 1.959963984540054


@dataclass(frozen=True)
class Gain:
    """What plain fine-tuning gains on the new task's held-out rows.

    Attributes:
        start: Loss before, nats per token.
        best: Lowest loss at any measurement.
        low: Lower end of the gain's 95% interval over the rows (paired). The best measurement is
            picked by the same rows, so it is a little optimistic.
    """

    start: float
    best: float
    low: float

    @property
    def resolved(self) -> bool:
        """Whether there is any progress to speak of."""
        return self.low > 0

    def level(self, share: float) -> float:
        """The loss at a share of the gain.

        Args:
            share: From 0 (before) to 1 (the best).

        Returns:
            Nats per token.
        """
        return self.start - share * (self.start - self.best)


def gain_of(course: Course, task: str) -> Gain:
    """What a fine-tuning gained at its best.

    Args:
        course: The fine-tuning.
        task: The new task.

    Returns:
        The gain; its interval is that of a ratio of means over rows.
    """
    means, tokens = course.mean(task), course.tokens[task]
    best = int(np.argmin(means))
    saved = course.losses[task][0] - course.losses[task][best]
    gain = saved.sum() / tokens.sum()
    n = len(tokens)
    error = math.sqrt(n / (n - 1) * float(np.square(saved - gain * tokens).sum())) / tokens.sum()
    return Gain(float(means[0]), float(means[best]), float(gain - _Z * error))


def compare(
    courses: Courses,
    gains: Mapping[int, Gain],
    *,
    new: str,
    old: Sequence[str],
    levels: Sequence[float],
) -> pd.DataFrame:
    """Every arm's old losses where the new task's first falls to each level.

    A level is a share of what plain fine-tuning gained in the same seed; differences are paired
    by seed.

    Args:
        courses: Arm and seed to fine-tuning.
        gains: Seed to what plain fine-tuning gained; seeds without progress are left out.
        new: The new task.
        old: The old tasks.
        levels: Shares.

    Returns:
        As :attr:`fisherscope.Remedies.table`.
    """
    arms = list(dict.fromkeys(arm for arm, _ in courses))
    seeds = list(gains)
    of = {null: arm for arm, null in NULLS.items()}
    found: dict[tuple[str, float, str], np.ndarray] = {}
    for arm in arms:
        for share in levels:
            for task in (*old, MEAN):
                found[arm, share, task] = np.array([
                    _old_at(courses[arm, seed], new, old, task, gains[seed].level(share))
                    for seed in seeds
                ])
    rows = []
    for (arm, share, task), values in found.items():
        reached = int(np.isfinite(values).sum())
        start = float(_old(courses[PLAIN, seeds[0]], old, task)[0])
        row: dict[str, Any] = {
            "arm": arm, "of": of.get(arm, arm), "level": share, "task": task,
            "outcome": _outcome(reached, len(seeds)), "reached": reached, "n_seeds": len(seeds),
        }  # fmt: skip
        row |= over_seeds(values).named("loss") | over_seeds(values - start).named("increase")
        for key, other in (("plain", PLAIN), ("null", NULLS.get(arm, ""))):
            against = found.get((other, share, task))
            if against is None or other == arm:
                against = np.full(len(seeds), np.nan)
            gap = over_seeds(values - against)
            row |= gap.named(f"to_{key}") | {f"to_{key}_n": gap.n}
            row[f"to_{key}_verdict"] = (
                gap.verdict if arm not in {other, PLAIN} and (other, share, task) in found else ""
            )
        rows.append(row | {"unit": "nats per token"})
    return pd.DataFrame(rows)


def _outcome(reached: int, seeds: int) -> str:
    if not reached:
        return "never_reached"
    return "reached" if reached == seeds else "reached_by_some"


def _old(course: Course, old: Sequence[str], task: str) -> np.ndarray:
    if task != MEAN:
        return course.mean(task)
    return np.mean([course.mean(name) for name in old], axis=0)


def _old_at(course: Course, new: str, old: Sequence[str], task: str, level: float) -> float:
    return at_level(course.mean(new), _old(course, old, task), level)

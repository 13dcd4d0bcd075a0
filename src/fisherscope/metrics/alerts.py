"""What a reader of a run must know before believing its numbers, rule by rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fisherscope.engine.coverage import SLOW

Results = Mapping[str, Any]
Alert = dict[str, Any]

FEW_EXAMPLES = 30
NOISY = 0.2
STABLE = 0.9
DOMINANT = 0.5


def alerts(results: Results) -> list[Alert]:
    """Apply every rule to what a run found.

    Args:
        results: The content of ``results.json`` but for its alerts.

    Returns:
        Red alerts first; each with ``level``, ``rule``, ``message``, ``value`` and ``link``.
    """
    found = [alert for rule in _RULES for alert in rule(results)]
    return sorted(found, key=lambda alert: alert["level"] != "red")


def _alert(level: str, rule: str, message: str, value: float, link: str) -> Alert:
    return {"level": level, "rule": rule, "message": message, "value": value, "link": f"#{link}"}


def _few_examples(results: Results) -> Iterator[Alert]:
    for task in results["tasks"]:
        n = task["n_examples"]
        if n < FEW_EXAMPLES:
            yield _alert(
                "red" if n < FEW_EXAMPLES // 3 else "amber",
                "few-examples",
                f"Task {task['name']} has {n} examples, fewer than {FEW_EXAMPLES}: its intervals "
                "are themselves uncertain. Give it more rows.",
                n,
                "tasks",
            )


def _skipped(results: Results) -> Iterator[Alert]:
    for task in results["tasks"]:
        skipped = task["skipped"]
        if skipped:
            n, names = len(skipped), ", ".join(map(str, skipped[:3])) + "…" * (len(skipped) > 3)
            yield _alert(
                "red",
                "skipped-examples",
                f"{n} examples of task {task['name']} gave numbers that are not finite and were "
                f"left out ({names}): what is shown describes only the others.",
                n,
                "tasks",
            )


def _noisy(results: Results) -> Iterator[Alert]:
    for task, rows in results["importance"].items():
        errors = [row["relative_se"] for row in rows if row["relative_se"] is not None]
        median = float(np.median(errors)) if errors else 0.0
        if median > NOISY:
            yield _alert(
                "red" if median > 2.5 * NOISY else "amber",
                "noisy-estimate",
                f"Half of the tensors of task {task} have a relative standard error above "
                f"{median:.0%} (limit {NOISY:.0%}): use more examples before ranking them.",
                median,
                "importance",
            )


def _unstable(results: Results) -> Iterator[Alert]:
    for task in results["tasks"]:
        agreement = task["split_half_spearman"]
        if agreement is not None and agreement < STABLE:
            yield _alert(
                "red" if agreement < 0.5 else "amber",
                "unstable-ranking",
                f"Two halves of task {task['name']} rank the parameters differently (rank "
                f"correlation {agreement:.3f}, limit {STABLE}): single parameters cannot be "
                "told apart yet. Use more examples, or read whole modules only.",
                agreement,
                "concentration",
            )


def _dominant(results: Results) -> Iterator[Alert]:
    for task, rows in results["importance"].items():
        shares: dict[str, float] = defaultdict(float)
        for row in rows:
            shares[row["module"]] += row["share"] or 0.0
        for module, share in shares.items():
            if share > DOMINANT:
                yield _alert(
                    "amber",
                    "dominant-module",
                    f"{module} alone holds {share:.0%} of the Fisher trace of task {task}: totals "
                    "and global masks say little about the rest. Compare within modules.",
                    share,
                    "importance",
                )


def _slow(results: Results) -> Iterator[Alert]:
    counts = [c for rule, c in results["model"]["coverage"].items() if rule.startswith(SLOW)]
    if counts:
        tensors = sum(count["tensors"] for count in counts)
        parameters = sum(count["parameters"] for count in counts)
        yield _alert(
            "amber",
            "slow-path",
            f"{tensors} tensors ({parameters:,} parameters) have no fast rule and took the exact "
            "slow path: the numbers are right, the run is longer.",
            tensors,
            "coverage",
        )


def _no_overlap(results: Results) -> Iterator[Alert]:
    reason = results.get("overlap_absent")
    if reason:
        yield _alert(
            "amber", "no-overlap", f"Pruning masks are not compared: {reason}", 0, "overlap"
        )


def _damage_missed(results: Results) -> Iterator[Alert]:
    cells = [cell for cell in results["damage"]["cells"] if cell["measured"] is not None]
    missed = [cell for cell in cells if not _covers(cell)]
    if missed:
        worst = max(missed, key=lambda cell: abs(cell["predicted"] - cell["measured"]))
        yield _alert(
            "amber",
            "damage-missed",
            f"{len(missed)} of {len(cells)} damage predictions do not cover what was measured; "
            f"the farthest is {worst['on']} after a step for {worst['by']}: predicted "
            f"{worst['predicted']:+.4f} [{worst['predicted_low']:+.4f}, "
            f"{worst['predicted_high']:+.4f}], measured {worst['measured']:+.4f} {worst['unit']}. "
            "The step is too long for a quadratic picture.",
            len(missed) / len(cells),
            "damage",
        )


def _covers(cell: Mapping[str, Any]) -> bool:
    low, high = cell["predicted_low"], cell["predicted_high"]
    if low is None or high is None:
        return True
    return low <= cell["measured"] <= high


_RULES: tuple[Callable[[Results], Iterator[Alert]], ...] = (
    _few_examples,
    _skipped,
    _noisy,
    _unstable,
    _dominant,
    _slow,
    _no_overlap,
    _damage_missed,
)

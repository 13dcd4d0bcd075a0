"""Which weights can go: four ways to choose at equal sparsity, and what removing them costs."""

from __future__ import annotations

from typing import Any, get_args

import fisherscope as fs
from fisherscope.analysis.masks import Method
from proving.subject import Losses, Subject, losses, paired

METHODS = ("obd", "fisher", "magnitude", "random")
assert set(METHODS) == set(get_args(Method))
LEVELS = [
    *(("weight", sparsity) for sparsity in (0.1, 0.3, 0.5, 0.7)),
    ("head", 0.25),
    ("neuron", 0.25),
]


def study(subject: Subject) -> dict[str, Any]:
    """Prune each model for each task with a Fisher of one half, and measure on the other.

    Returns:
        ``lines``: one per model, task and level with the measured loss increase of each method
        (nats per token, paired interval) and the difference ``obd - magnitude``; the task
        ``"mean"`` is the mean over tasks.
    """
    lines = []
    for name in ("instruct", "base"):
        model = subject.model(name)
        before = {task: losses(model, rows) for task, (_, rows) in subject.tasks.items()}
        after: dict[tuple[str, float, str], dict[str, Losses]] = {}
        for task, (chosen_by, measured_on) in subject.tasks.items():
            fisher = fs.estimate(model, chosen_by, fisher_type="mc", progress=False)
            for structure, sparsity in LEVELS:
                for method in METHODS:
                    masks = fs.masks(
                        fisher, sparsity, model=model, method=method, structure=structure
                    )
                    found = losses(fs.prune(model, masks), measured_on)
                    after.setdefault((structure, sparsity, method), {})[task] = found
                    print(f"{name} {task} {structure} {sparsity} {method}: {found.mean:.3f}")
        for structure, sparsity in LEVELS:
            found = {method: after[structure, sparsity, method] for method in METHODS}
            for task in [*subject.tasks, "mean"]:
                wanted = list(subject.tasks) if task == "mean" else [task]

                def only(which: dict[str, Losses], wanted: list[str] = wanted) -> dict[str, Losses]:
                    return {t: which[t] for t in wanted}

                lines.append({
                    "model": name,
                    "task": task,
                    "structure": structure,
                    "sparsity": sparsity,
                    "loss": sum(before[t].mean for t in wanted) / len(wanted),
                    "increase": {m: paired(only(found[m]), only(before)) for m in METHODS},
                    "difference": paired(only(found["obd"]), only(found["magnitude"])),
                })
    rows = {task: [len(half) for half in two] for task, two in subject.tasks.items()}
    return {"lines": lines, "rows": rows}

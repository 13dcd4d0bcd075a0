"""A synthetic run that looks like a real one: coherent numbers at any size and shape."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

NAMES = ("math", "code", "prose", "dialogue", "law", "poems", "recipes", "patents", "chess", "news",
         "logic", "medicine")  # fmt: skip
LLAMA = {
    "q_proj": 1.0, "k_proj": 0.6, "v_proj": 4.0, "o_proj": 2.0,
    "gate_proj": 0.8, "up_proj": 1.1, "down_proj": 2.6, "norm": 90.0,
}  # fmt: skip


def make_results(
    n_tasks: int = 4,
    n_layers: int = 12,
    *,
    names: tuple[str, ...] | None = None,
    modules: dict[str, float] | None = None,
    sparsities: tuple[float, ...] = (0.9,),
    seed: int = 0,
) -> dict[str, Any]:
    """What an analysis leaves in results.json; `n_layers=0` gives a model without layers."""
    rng = np.random.default_rng(seed)
    names = tuple(names or NAMES[:n_tasks])
    importance = {
        name: _importance(rng, n_layers, modules or LLAMA, i) for i, name in enumerate(names)
    }
    n_parameters = sum(row["n_parameters"] for row in importance[names[0]])
    curves = {name: _curve(rng, 0.42 + 0.05 * rng.normal()) for name in names}
    tasks = []
    for name in names:
        trace = sum(row["mean"] * row["n_parameters"] for row in importance[name])
        tasks.append({
            "name": name, "n_examples": int(rng.integers(60, 400)),
            "n_tokens": int(rng.integers(6000, 60000)),
            "loss": 2 + rng.random(), "loss_se": 0.03 + 0.02 * rng.random(),
            "trace": trace, "trace_se": trace * (0.03 + 0.05 * rng.random()),
            "mean_fisher": trace / n_parameters,
            "participation": n_parameters * 0.02 * rng.random(),
            "top1_mass": curves[name]["top"]["0.01"],
            "split_half_spearman": 0.8 + 0.18 * rng.random(),
            "seconds": 20 * rng.random(), "skipped": [],
        })  # fmt: skip
    return {
        "format": 1, "version": "0.1.0", "created": "2026-11-22T19:00:00Z",
        "model": {
            "source": "example/tiny-llama-42M", "class": "LlamaForCausalLM",
            "likelihood": "causal-lm", "n_parameters": n_parameters,
            "n_tensors": len(importance[names[0]]), "dtype": "float32",
            "fingerprint": "9f2c41d07be6",
            "coverage": {
                "linear": {"tensors": 7 * n_layers, "parameters": n_parameters - 4_200_000},
                "embedding": {"tensors": 1, "parameters": 4_096_000},
                "rms norm": {"tensors": 2 * n_layers + 1, "parameters": 104_000},
            },
        },
        "settings": {
            "structure": "diagonal", "fisher_type": "empirical", "unit": "example", "draws": 1,
            "seed": 0, "max_examples": 400, "max_length": 512, "batch_size": None,
            "parameters": None,
        },
        "tasks": tasks,
        "alerts": [
            {"level": "amber", "rule": "unstable-ranking", "value": 0.83, "link": "#concentration",
             "message": f"Two halves of task {names[0]} rank the parameters differently (rank "
             "correlation 0.83, limit 0.9): read whole modules only, or use more examples."},
            {"level": "red", "rule": "few-examples", "value": 8, "link": "#tasks",
             "message": f"Task {names[-1]} has 8 examples, fewer than 30: its intervals are "
             "themselves uncertain. Give it more rows."},
        ],
        "importance": importance,
        "concentration": curves,
        "similarity": _similarity(rng, names),
        "overlap": _overlap(rng, names, sparsities),
        "damage": _damage(rng, names),
        "asymmetry": [
            {"task_a": a, "task_b": b, "quantity": "index", "a": 2.0, "b": 1.0, "difference": 1.0,
             "difference_low": 0.5, "difference_high": 1.5, "more_fragile": a, "outcome": "ok"}
            for a, b in itertools.combinations(names, 2)
        ],
        "uncertainty": [],
        "run": {
            "seconds": 412.6, "peak_memory_bytes": 2_345_678_901, "python": "3.12.4",
            "torch": "2.13.0", "transformers": "5.23.0",
            "command": "fisherscope analyze example/tiny-llama --task math=math.jsonl --out RUN",
        },
    }  # fmt: skip


def _importance(rng, n_layers, modules, task):
    outside = [
        ("model.embed_tokens.weight", "embed", 4_096_000, 0.02),
        ("model.norm.weight", "norm", 512, 300.0),
        ("lm_head.weight", "head", 4_096_000, 9.0),
    ]
    if not n_layers:
        outside = [(f"{i}.{kind}", str(i), 4096 if kind == "weight" else 64, 1 / (i + 1))
                   for i in (0, 2, 4) for kind in ("weight", "bias")]  # fmt: skip
    rows = [(None, *entry) for entry in outside]
    for layer in range(n_layers):
        depth = layer / max(1, n_layers - 1)
        for module, level in modules.items():
            factor = level * 10 ** (0.8 * (depth - 0.5) * np.cos(task + 2 * depth))
            size = 512 if module == "norm" else 512 * (1408 if "proj" in module[2:] else 512)
            rows.append((layer, f"model.layers.{layer}.{module}.weight", module, size, factor))
            if module == "q_proj":
                name = f"model.layers.{layer}.q_proj.bias"
                rows.append((layer, name, module, 512, 30 * factor))
            if module == "norm":
                rows.append((layer, f"model.layers.{layer}.post_norm.weight", module, size, factor))
    found = []
    for layer, tensor, module, size, factor in rows:
        mean = 2e-7 * (1 + 0.4 * task) * factor * float(np.exp(0.25 * rng.normal()))
        relative = float(rng.gamma(4, 0.03))
        found.append({
            "tensor": tensor, "layer": layer, "module": module, "n_parameters": size,
            "mean": mean, "mean_se": mean * relative, "relative_se": relative,
            "reliable": relative <= 0.2,
        })  # fmt: skip
    trace = sum(row["mean"] * row["n_parameters"] for row in found)
    for row in found:
        row["share"] = row["mean"] * row["n_parameters"] / trace
        row["share_se"] = row["share"] * row["relative_se"] * 0.8
    return found


def _curve(rng, one_percent):
    fraction = np.geomspace(1e-5, 1, 61)
    shape = np.log(one_percent) / np.log(0.01)
    mass = fraction**shape
    # What the same parameters hold in the other half: less, as sorting flatters.
    width = 0.12 * mass * (1 - mass)
    low, high = mass - 3 * width, mass - width
    top = {str(f): float(f**shape) for f in (0.001, 0.01, 0.1)}
    return {"fraction": fraction.tolist(), "mass": mass.tolist(), "low": low.tolist(),
            "high": high.tolist(), "top": top}  # fmt: skip


def _pairs(names):
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def _similarity(rng, names):
    rows = []
    place = rng.random((len(names), 2))
    index = {name: i for i, name in enumerate(names)}
    for metric, shift in (("cosine", 0.0), ("pearson", -0.02), ("spearman", 0.1), ("jaccard", -0.2),
                          ("bhattacharyya", 0.15)):  # fmt: skip
        for a, b in _pairs(names):
            apart = float(np.linalg.norm(place[index[a]] - place[index[b]]))
            value = float(np.clip(0.8 - 0.6 * apart + shift, 0.02, 0.97))
            width = 0.01 + 0.03 * float(rng.random())
            ceiling = min(0.99, value + 0.08 + 0.1 * float(rng.random()))
            rows.append({
                "task_a": a, "task_b": b, "metric": metric, "value": value,
                "low": value - 0.03 - width,
                "high": value - 0.03 + width, "halves": value - 0.03, "ceiling": ceiling,
                "floor": 0.05,
                "floor_high": 0.08, "n_a": 200, "n_b": 180,
            })  # fmt: skip
    return rows


def _overlap(rng, names, sparsities):
    rows = []
    for a, b in _pairs(names):
        for sparsity in sparsities:
            kept = 1 - sparsity
            chance = kept / (2 - kept)
            jaccard = chance + (1 - chance) * float(0.2 + 0.4 * rng.random())
            rows.append({
                "task_a": a, "task_b": b, "sparsity": sparsity, "jaccard": jaccard,
                "smaller": 2 * jaccard / (1 + jaccard), "chance": chance,
                "excess": jaccard - chance,
                "chance_within": chance + 0.3 * (jaccard - chance),
            })  # fmt: skip
    return rows


def _damage(rng, names):
    if len(names) < 2:
        return {"definition": "Not computed: one task.", "cells": []}
    cells = []
    for on in names:
        for by in names:
            own = on == by
            first = -0.03 - 0.01 * rng.random() if own else float(rng.normal(0.004, 0.008))
            second = 0.004 + 0.004 * float(rng.random())
            predicted = first + second
            measured = predicted * (1 + 0.1 * rng.normal()) + 0.0008 * rng.normal()
            cells.append({
                "on": on, "by": by, "step_norm": 0.12 + 0.02 * float(rng.random()), "first": first,
                "second": second, "predicted": predicted, "predicted_low": predicted - 0.0021,
                "predicted_high": predicted + 0.0021, "measured": float(measured),
                "measured_low": float(measured) - 0.0018, "measured_high": float(measured) + 0.0018,
                "diagonal": second * (0.1 + 0.2 * float(rng.random())), "unit": "nats per token",
                "n": 100,
            })  # fmt: skip
    return {
        "definition": "Each task in turn takes a step of steepest descent, made from one half of "
        "its examples. Shown is the change of each task's loss on the other half. Intervals: 95%.",
        "cells": cells,
    }

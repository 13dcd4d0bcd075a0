"""Each kind of estimate many times over, against the exact Fisher: bias apart from variance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2, spearmanr
from torch import Tensor, nn

import fisherscope as fs
from choosing.exact import Exact
from fisherscope.data import Example

Options = dict[str, Any]
Row = dict[str, Any]

MC: Options = {"fisher_type": "mc"}
SIGNS: Options = {"fisher_type": "mc", "sampling": "signs"}
# Name in the table → options, and how often it is repeated with another seed.
ESTIMATES: dict[str, tuple[Options, int]] = {
    "empirical, per example": ({}, 1),
    "empirical, per token": ({"unit": "token"}, 1),
    "labels, 1 draw": (MC, 40),
    "labels, 4 draws": ({**MC, "draws": 4}, 20),
    "labels, 16 draws": ({**MC, "draws": 16}, 10),
    "signs, 1 draw": (SIGNS, 40),
    "signs, 4 draws": ({**SIGNS, "draws": 4}, 20),
    "signs, 16 draws": ({**SIGNS, "draws": 16}, 10),
    "labels, batches of 4": ({**MC, "unit": "batch", "batch_size": 4}, 40),
    "labels, batches of 12": ({**MC, "unit": "batch", "batch_size": 12}, 40),
    "labels, per position": ({**MC, "unit": "position"}, 40),
}
# Those whose standard error over examples is compared with what fresh examples give.
FRESH = ("empirical, per example", "empirical, per token", "labels, 1 draw", "labels, batches of 4")


def flat(diagonal: dict[str, Tensor]) -> np.ndarray:
    """One float64 vector."""
    return torch.cat([x.flatten() for x in diagonal.values()]).double().numpy()


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Standard deviation of repeated estimates with its 95% interval (normal values)."""
    freedom = len(values) - 1
    sd = float(np.std(values, ddof=1))
    low, high = chi2.ppf([0.975, 0.025], freedom)
    return sd, sd * math.sqrt(freedom / low), sd * math.sqrt(freedom / high)


def against(
    model: nn.Module, data: Sequence[Example], options: Options, repeats: int, truth: Exact
) -> Row:
    """One row of the table: bias, spread, theory and calibration of one kind of estimate."""
    reference = truth.diagonal.numpy()
    size = float(np.linalg.norm(reference))
    traces, errors, cosines, ranks = [], [], [], []
    mean, squares = np.zeros_like(reference), np.zeros_like(reference)
    several = options.get("draws", 1) > 1
    for seed in range(repeats):
        fisher = fs.estimate(model, data, seed=seed, progress=False, **options)
        found = flat(fisher.diagonal(per="token"))
        traces.append(fisher.trace(per="token"))
        if several:
            errors.append(fisher.standard_error(per="token", source="draws")[""])
        cosines.append(float(found @ reference / np.linalg.norm(found) / size))
        ranks.append(float(spearmanr(found, reference).statistic))
        step = found - mean
        mean += step / (seed + 1)
        squares += step * (found - mean)
    row: Row = {
        "repeats": repeats,
        "trace_bias": float(np.mean(traces)) / truth.trace - 1,
        "cosine": float(np.mean(cosines)),
        "spearman": float(np.mean(ranks)),
    }
    off = float(np.square(mean - reference).sum())
    if repeats == 1:
        return row | {"diagonal_bias": math.sqrt(off) / size}
    variance = squares / (repeats - 1)
    sd, low, high = (x / truth.trace for x in spread(traces))
    noise = float(variance.sum()) / repeats
    row |= {
        "trace_bias_se": sd / math.sqrt(repeats),
        # What the noise of the mean adds to the squared distance is taken off again.
        "diagonal_bias": math.sqrt(max(0.0, off - noise)) / size,
        "diagonal_bias_noise": math.sqrt(noise) / size,
        "trace_sd": [sd, low, high],
        "diagonal_sd": math.sqrt(float(variance.sum())) / size,
        "element_sd": float(np.median(np.sqrt(variance) / reference)),
    }
    if options.get("unit", "example") != "position":
        row |= _theory(options, truth, reference, size)
    if errors:
        mine = float(np.sqrt(np.mean(np.square(errors)))) / truth.trace
        row["calibration"] = [mine / sd, mine / high, mine / low]
        row["calibration_exact"] = mine / row["theory_trace_sd"]
    return row


def _theory(options: Options, truth: Exact, reference: np.ndarray, size: float) -> Row:
    sampling, draws = options.get("sampling", "labels"), options.get("draws", 1)
    together = options["batch_size"] if options.get("unit") == "batch" else 1
    variance = truth.diagonal_variance(sampling, draws, together).numpy()
    row = {
        "theory_diagonal_sd": math.sqrt(float(variance.sum())) / size,
        "theory_element_sd": float(np.median(np.sqrt(variance) / reference)),
    }
    if together == 1:
        row["theory_trace_sd"] = math.sqrt(truth.trace_variance(sampling, draws)) / truth.trace
    return row


def on_fresh_data(model: nn.Module, sets: Sequence[Sequence[Example]]) -> dict[str, Row]:
    """Whether the standard error over examples is what the trace varies by over data sets."""
    found = {}
    for name in FRESH:
        options, _ = ESTIMATES[name]
        traces, errors = [], []
        for seed, data in enumerate(sets):
            fisher = fs.estimate(model, data, seed=seed, progress=False, **options)
            traces.append(fisher.trace(per="token"))
            errors.append(fisher.standard_error(per="token")[""])
        sd, low, high = spread(traces)
        mine, middle = float(np.sqrt(np.mean(np.square(errors)))), float(np.mean(traces))
        found[name] = {
            "sets": len(sets),
            "trace_sd": sd / middle,
            "standard_error": mine / middle,
            "calibration": [mine / sd, mine / high, mine / low],
        }
    return found


def labels_or_signs(model: nn.Module, truth: Exact) -> Row:
    """Exact standard deviations of labels over signs: the whole, each tensor, each token."""
    one, other = (truth.diagonal_variance(s) for s in ("labels", "signs"))
    tensors, start = {}, 0
    for name, p in model.named_parameters():
        part = slice(start, start + p.numel())
        tensors[name] = float((one[part] / other[part]).sqrt().median())
        start += p.numel()
    token = [
        torch.cat([getattr(t, f"token_{s}") for t in truth.traces]) for s in ("labels", "signs")
    ]
    ratio = (token[0] / token[1]).sqrt()
    return {
        "trace": math.sqrt(truth.trace_variance("labels") / truth.trace_variance("signs")),
        "element_median": float((one / other).sqrt().median()),
        "element_share_signs_lower": float((one > other).double().mean()),
        "tensors": tensors,
        "token_ratio": [round(x, 4) for x in ratio.tolist()],
        "token_entropy": [round(x, 4) for x in truth.entropy.tolist()],
    }

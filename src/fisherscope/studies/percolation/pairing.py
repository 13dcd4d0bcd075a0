"""Two curves of the same examples compared draw by draw."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fisherscope.studies.percolation.threshold import Fall, nothing, ratio

Verdict = Literal["resolved", "not_resolved"]
COMPARED = {"midpoint": "ratio", "robustness": "difference"}


def paired(quantity: str, a: Fall, b: Fall) -> dict[str, Any]:
    """How a quantity of one curve differs from that of another.

    Both curves must have been resampled with the same seed, so that every draw has the same
    examples in both; what makes an example easy or hard for both then cancels.

    Args:
        quantity: ``"midpoint"``, compared by the ratio b / a; or ``"robustness"``, by the
            difference b − a.
        a: One curve.
        b: The other.

    Returns:
        Columns of a table: ``compared``, ``value`` with its 95% interval, ``outcome``, and the
        ``verdict``: resolved if the interval leaves out 1 (of a ratio) or 0 (of a difference).
    """
    compared = COMPARED[quantity]
    row: dict[str, Any] = {"compared": compared, "verdict": "not_resolved"}
    if not (a.informed and b.informed):
        return row | nothing("no_better_than_uninformed")
    few = min(a.n_examples, b.n_examples)
    if compared == "ratio":
        found, same = ratio(b.midpoint(), a.midpoint(), few), 1.0
    else:
        draws = b.robustness() - a.robustness()
        low, high = np.quantile(draws[1:], [0.025, 0.975])
        found = {"value": draws[0], "low": low, "high": high, "outcome": "ok"}
        if few < 2:
            found |= {"low": np.nan, "high": np.nan, "outcome": "too_few_examples"}
        same = 0.0
    if found["outcome"] == "ok" and not found["low"] <= same <= found["high"]:
        row["verdict"] = "resolved"
    return row | found

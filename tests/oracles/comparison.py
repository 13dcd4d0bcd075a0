"""Estimates of several processes beside that of one."""

from __future__ import annotations

from typing import Any

import numpy as np

import fisherscope as fs

MC = {"fisher_type": "mc", "draws": 2, "seed": 3}
KINDS: dict[str, dict[str, Any]] = {
    "diagonal": {"structure": "diagonal"},
    "diagonal mc": {"structure": "diagonal", **MC},
    "grouped mc": {"structure": "grouped", **MC},
    "kfac": {"structure": "kfac"},
    "ekfac": {"structure": "ekfac"},
    "ekfac mc": {"structure": "ekfac", **MC},
    "squares of batches": {"unit": "batch", "fisher_type": "mc"},
    "halves, by parts": {"structure": "grouped", "halves": True, "memory_limit": 2000},
}


def plain(fisher: fs.Fisher) -> dict[str, Any]:
    """What crosses a pipe: arrays rather than tensors, whose memory would be shared."""
    return {
        "sums": {key: total.numpy() for key, total in fisher.sums.items()},
        "ids": fisher.ledger.ids,
        "squares": fisher.ledger.squares,
        "counts": (fisher.n_units, fisher.n_tokens),
        "identity": fisher.identity,
        "groups": fisher.ledger.groups,
    }


def close(mine: dict[str, Any], whole: dict[str, Any], what: str) -> None:
    assert mine["ids"] == whole["ids"] and mine["counts"] == whole["counts"], what
    assert mine["identity"] == whole["identity"], what
    np.testing.assert_allclose(mine["squares"], whole["squares"], rtol=1e-5, err_msg=what)
    for key, total in whole["sums"].items():
        error = np.linalg.norm(mine["sums"][key] - total)
        assert error <= 1e-6 * np.linalg.norm(total), (what, key)
    if whole["groups"] is not None:
        # Numbered otherwise, the same rows belong together.
        a, b = (g["groups"][:, None] == g["groups"] for g in (mine, whole))
        assert (a == b).all(), what


def traces(found: dict[str, Any]) -> dict[str, float]:
    """Those of the diagonal and of the eigenvalues, which no basis changes."""
    sums = found["sums"].items()
    return {
        key: float(total.sum(dtype=np.float64))
        for key, total in sums
        if ":" not in key or key.endswith(":eigenvalues")
    }

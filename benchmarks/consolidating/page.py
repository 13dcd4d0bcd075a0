"""The tables and the plot of ``docs/continual.md`` from the figures in ``results/``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt

from fisherscope.studies.seeds import over_seeds

ROOT = Path(__file__).resolve().parents[2]
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
# Okabe and Ito's colours, and a mark each.
LOOKS = {
    "naive": ("#6b7280", "x"),
    "plain": ("#6b7280", "x"),
    "L2": ("#d55e00", "s"),
    "EWC": ("#0072b2", "o"),
    "online EWC": ("#009e73", "^"),
    "joint": ("#000000", "d"),
}
METRICS = ("ACC", "forgetting", "BWT", "FWT", "learning", "intransigence")


def write() -> None:
    """Put what has been measured between the page's markers."""
    parts: dict[str, Callable[[dict[str, Any]], str]] = {
        "digits": _digits,
        "narrow": _digits,
        "language": _language,
        "memory": _memory,
    }
    path = DOCS / "continual.md"
    text = path.read_text(encoding="utf-8")
    for name, table in parts.items():
        known = _read(name)
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin in text and _complete(name, known):
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n{table(known)}\n{end}{rest.partition(end)[2]}"
    path.write_text(text, encoding="utf-8")
    _draw()


def _complete(name: str, known: dict[str, Any]) -> bool:
    key = {"digits": "metrics", "narrow": "metrics", "language": "table"}.get(name)
    return bool(known) if key is None else key in known


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"continual-{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _digits(known: dict[str, Any]) -> str:
    rows = []
    for method, metrics in known["metrics"].items():
        found = {row["metric"]: row for row in metrics}
        strength = known["best"].get(method)
        cells = [_value(found[m]) if m in found else "–" for m in METRICS]
        rows.append([method, "–" if strength is None else f"{strength:g}", *cells])
    return _markdown(["method", "λ", *METRICS], rows) + "\n\n" + _paired(known)


def _value(row: dict[str, Any]) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _paired(known: dict[str, Any]) -> str:
    """Differences of the final mean accuracy, seed by seed."""

    def final(method: str) -> np.ndarray:
        runs = {k: v for k, v in known["runs"].items() if k.rpartition(" ")[0] == method}
        return np.array([np.mean(runs[key]["matrix"][-1]) for key in sorted(runs)])

    said = []
    pairs = (("EWC", "naive"), ("EWC", "L2"), ("online EWC", "naive"), ("online EWC", "L2"),
             ("joint", "EWC"))  # fmt: skip
    for one, two in pairs:
        if one not in known["metrics"]:
            continue
        gap = over_seeds(final(one) - final(two))
        verdict = "above" if gap.low > 0 else "below" if gap.high < 0 else "not resolved from"
        ends = f"{gap.low:+.3f} to {gap.high:+.3f}"
        said.append(f"{one} is {verdict} {two} ({gap.value:+.3f}, {ends})")
    return "Mean accuracy at the end, paired by seed: " + "; ".join(said) + "."


def _language(known: dict[str, Any]) -> str:
    rows = []
    for row in known["table"]:
        plain = row["method"] == "plain"
        rows.append([
            f"{100 * row['share']:.0f}%",
            row["method"],
            "–" if plain else f"{row['strength']:g}",
            _interval(row),
            "–" if plain else _interval(row["saved"]),
            _interval(row["against_L2"]) if "against_L2" in row else "–",
        ])
    header = ["new task learnt", "method", "λ", "old loss, increase", "saved against plain",
              "saved against L2"]  # fmt: skip
    return _markdown(header, rows)


def _interval(row: dict[str, Any]) -> str:
    if row["mean"] != row["mean"]:
        return "not reached by every seed"
    return f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _memory(known: dict[str, Any]) -> str:
    rows = [
        [name, f"{row['said']:.1f}", f"{row['kept']:.2f}", f"{row['step']:.1f}"]
        for name, row in known.items()
    ]
    header = ["kept", "stated", "measured in memory", "more while it is added"]
    return _markdown(header, rows)


def _draw() -> None:
    digits, language = _read("digits"), _read("language")
    panels = [("digits", digits)] if "metrics" in digits else []
    panels += [("language", language)] if "table" in language else []
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False)
    for axis, (name, known) in zip(axes[0], panels, strict=True):
        (_draw_digits if name == "digits" else _draw_language)(axis, known)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "continual.png", dpi=130, facecolor="white")
    plt.close(figure)


def _draw_digits(axis: Any, known: dict[str, Any]) -> None:
    for method in known["metrics"]:
        runs = [v["matrix"] for k, v in known["runs"].items() if k.rpartition(" ")[0] == method]
        seen = np.array([[np.mean(row[: i + 1]) for i, row in enumerate(m)] for m in runs])
        means = [over_seeds(at) for at in seen.T]
        colour, mark = LOOKS[method]
        steps = np.arange(1, seen.shape[1] + 1)
        axis.plot(steps, [m.value for m in means], color=colour, marker=mark, label=method)
        ends = [m.low for m in means], [m.high for m in means]
        axis.fill_between(steps, *ends, color=colour, alpha=0.15)
    axis.set_xticks(steps)
    axis.set_xlabel("tasks trained on")
    axis.set_ylabel("mean accuracy on these tasks")
    axis.set_title("Permuted digits, 95% over seeds", fontsize=10)


def _draw_language(axis: Any, known: dict[str, Any]) -> None:
    for key, curve in known["runs"].items():
        method, strength, seed = key.rsplit(" ", 2)
        colour, mark = LOOKS[method]
        old = [(point["code"] + point["prose"]) / 2 for point in curve]
        new = [point["qa"] for point in curve]
        strong = float(strength) > 10
        named = method if method == "plain" else f"{method}, λ = {strength}"
        axis.plot(
            new, old, color=colour, marker=mark, markersize=3, linewidth=1,
            linestyle="--" if strong else "-", label=named if seed == "0" else None,
        )  # fmt: skip
    axis.invert_xaxis()
    axis.set_xlabel("loss of the new task (learning →)")
    axis.set_ylabel("mean loss of the old tasks")
    axis.set_title("Fine-tuning, nats per token, a line per seed", fontsize=10)

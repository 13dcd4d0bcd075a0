"""The marked tables of ``docs/percolation.md`` and its plots, from the figures in ``results/``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import table

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "percolation.md"
LOOKS = {
    "fisher": ("Fisher", "#0072b2"),
    "obd": ("Fisher·θ²", "#d55e00"),
    "magnitude": ("magnitude", "#009e73"),
    "inverse": ("inverse Fisher", "#e69f00"),
    "random": ("random", "#56b4e9"),
}
Row = Mapping[str, Any]
# What the study is held against: Fisher order must need so many times less than random order.
FACTOR = 5


def write(results: Mapping[str, Any], page: Path = PAGE, images: Path = DOCS / "images") -> None:
    """Rewrite the marked parts of the page and the plots of what was measured."""
    for name, make in (("demo", demo), ("widths", widths)):
        if name not in results:
            continue
        marks = (f"<!-- {name}: begin -->", f"<!-- {name}: end -->")
        said = f"Measured on {results['machine']}."
        table.write(page, f"{make(results[name])}\n\n{said}\n", marks)
    if "demo" in results:
        draw_curves(results["demo"], images / "percolation_demo.png")
    if "widths" in results:
        draw_widths(results["widths"], images / "percolation_widths.png")


def demo(found: Mapping[str, Any]) -> str:
    """Thresholds of the demo's models, what the study was held against, and the comparison."""
    places = dict.fromkeys((row["model"], row["on"]) for row in found["thresholds"])
    rows = []
    for model, on in places:
        at = {
            row["order"]: row
            for row in found["thresholds"]
            if (row["model"], row["on"], row["quantity"]) == (model, on, "midpoint")
        }
        ratio = pick(found["thresholds"], model, on, "fisher", "attack_ratio")
        rows.append([on, model, *(share(at[order]) for order in LOOKS), number(ratio)])
    header = ["task", "model", *(name for name, _ in LOOKS.values()), "random / Fisher"]
    parts = [
        "Fraction of the weights at which half of the task is lost, with 95% intervals:",
        markdown(header, rows),
        checks(found),
        "What remains on average over all fractions (robustness):",
        markdown(header[:-1], [
            [on, model, *(share(pick(found["thresholds"], model, on, o, "robustness"))
                          for o in LOOKS)]
            for model, on in places
        ]),
        "Instruct against base, in pairs:",
        markdown(
            ["task", "order", "ratio of the fractions", "", "difference of robustness, points", ""],
            list(compared(found["differences"])),
        ),
        "The three most costly single weights of each task, by exact removal, and their ranks:",
        markdown(
            ["task", "model", "weight", "cost, nats per token", "Fisher", "Fisher·θ²",
             "magnitude", "gradient·θ"],
            [
                [r["by"], r["model"], f"`{r['unit']}`",
                 f"{r['cost']:.3g} ({r['low']:.3g} to {r['high']:.3g})",
                 *(f"{r[f'rank_{o}']:,}" for o in ("fisher", "obd", "magnitude", "gradient"))]
                for r in found["critical"]
            ],
        ),
        "Fraction of the bonds at which the neuron graph loses its last path from input to output:",
        markdown(["task", "model", "Fisher", "random"], [
            [on, model, *(graph(found["structure"], model, on, o) for o in ("fisher", "random"))]
            for model, on in places
        ]),
    ]  # fmt: skip
    return "\n\n".join(parts)


def checks(found: Mapping[str, Any]) -> str:
    """What the study was held against, and whether it held."""
    ratios = [
        (row["model"], row["on"], row)
        for row in found["thresholds"]
        if (row["order"], row["quantity"]) == ("fisher", "attack_ratio")
    ]
    held = [row for row in ratios if known(row[2]["value"]) and row[2]["value"] >= FACTOR]
    sure = [row for row in held if known(row[2]["low"]) and row[2]["low"] >= FACTOR]
    least, best = [], {(m, on) for m, on, _ in ratios}
    for model, on in best:
        robust = {o: pick(found["thresholds"], model, on, o, "robustness") for o in LOOKS}
        top = max(robust, key=lambda order: robust[order]["value"])
        least.append(top == "inverse")
    starts = {(r["model"], r["task"]): r["loss"] for r in found["intact"]}
    exact = all(
        row["loss"] == starts[row["model"], row["on"]]
        for row in found["curves"]
        if row["removed"] == 0
    )
    ends: dict[Any, set[float]] = {}
    for row in found["curves"]:
        if row["fraction"] == 1:
            ends.setdefault((row["model"], row["on"]), set()).add(row["loss"])
    same = all(len(losses) == 1 for losses in ends.values())
    return (
        f"Fisher order needs at least {FACTOR} times less than random order in {len(held)} of "
        f"{len(ratios)} cases, in {len(sure)} also by the lower end of the interval. Inverse order "
        f"keeps most in {sum(least)} of {len(least)}. All curves of a task start at "
        f"{'exactly the intact loss' if exact else 'UNLIKE LOSSES'} and end at "
        f"{'one and the same loss' if same else 'UNLIKE LOSSES'}, that of the model without "
        "any weight."
    )


def compared(differences: Iterable[Row]) -> Iterable[list[str]]:
    """Ratio and difference of each order and task, with both verdicts."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in differences:
        found.setdefault((row["on"], row["order"]), {})[row["quantity"]] = row
    for (on, order), both in found.items():
        cells = [on, LOOKS[order][0]]
        for quantity in ("midpoint", "robustness"):
            row = both[quantity]
            said = number(row) if quantity == "midpoint" else number(points(row), "+.2g")
            cells += [said, row["verdict"].replace("_", " ") if known(row["value"]) else "–"]
        yield cells


def widths(found: Mapping[str, Any]) -> str:
    """Thresholds and graphs against width, and the exponents."""
    orders = [row["order"] for row in found["slopes"]]
    rows = []
    for graph_row in found["graph"]:
        model = graph_row["model"]
        at = {r["order"]: r for r in found["points"] if r["model"] == model}
        rows.append([
            model, f"{at[orders[0]]['size']:,}", *(share(at[order]) for order in orders),
            spread(graph_row, "left", "%"), spread(graph_row, "spread", "%"),
        ])  # fmt: skip
    rows.append([
        "exponent", "", *(exponent(row) for row in found["slopes"]), "",
        exponent(found["sharpening"][0]),
    ])  # fmt: skip
    header = [
        "network", "weights", *(LOOKS[order][0] for order in orders), "graph: bonds left",
        "graph: relative width",
    ]  # fmt: skip
    return markdown(header, rows)


def draw_curves(found: Mapping[str, Any], path: Path) -> None:
    """Loss over the fraction removed, one panel per model and task."""
    intact = {(row["model"], row["task"]): row for row in found["intact"]}
    models = list(dict.fromkeys(model for model, _ in intact))
    tasks = list(dict.fromkeys(task for _, task in intact))
    figure, grid = plt.subplots(
        len(models), len(tasks), figsize=(3.3 * len(tasks), 2.5 * len(models)), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    for line, model in zip(grid, models, strict=True):
        for axes, task in zip(line, tasks, strict=True):
            whole = intact[model, task]
            ceiling = whole["uninformed"] * 1.1
            for order, (name, color) in LOOKS.items():
                mine = [
                    r for r in found["curves"]
                    if (r["model"], r["on"], r["order"]) == (model, task, order) and r["removed"]
                ]  # fmt: skip
                x = [100 * r["fraction"] for r in mine]
                up = [
                    [min(r[key], ceiling) if known(r[key]) else ceiling for r in mine]
                    for key in ("loss", "low", "high")
                ]
                axes.plot(x, up[0], color=color, marker="o", markersize=3, label=name)
                axes.fill_between(x, up[1], up[2], color=color, alpha=0.2, linewidth=0)
            for loss in (whole["loss"], whole["uninformed"]):
                axes.axhline(loss, color="#9aa3ad", linewidth=0.8, linestyle="--")
            axes.set_xscale("log")
            axes.set_title(f"{model}, {task}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("weights removed (%)", fontsize=10)
    figure.supylabel("loss (nats per token)", fontsize=10)
    handles = grid[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(LOOKS), frameon=False)
    save(figure, path)


def draw_widths(found: Mapping[str, Any], path: Path) -> None:
    """Critical fraction against size, and the transition of the graph."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for order in dict.fromkeys(row["order"] for row in found["points"]):
        name, color = LOOKS[order]
        mine = [r for r in found["points"] if r["order"] == order and known(r["value"])]
        bars(left, [r["size"] for r in mine], mine, "value", ("low", "high"), color, name)
    left.set_xlabel("weights")
    left.set_ylabel("fraction at which half is lost")
    for key, name, color in (
        ("left", "bonds left at the transition", "#0072b2"),
        ("spread", "its relative width", "#d55e00"),
    ):
        x = [row["nodes"] for row in found["graph"]]
        bars(right, x, found["graph"], key, (f"{key}_low", f"{key}_high"), color, name)
    right.set_xlabel("neurons")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def bars(
    axes: Any, x: Sequence[float], rows: Sequence[Row], key: str, ends: tuple[str, str],
    color: str, name: str,
) -> None:  # fmt: skip
    values = [row[key] for row in rows]
    below = [row[key] - row[ends[0]] if known(row[ends[0]]) else 0.0 for row in rows]
    above = [row[ends[1]] - row[key] if known(row[ends[1]]) else 0.0 for row in rows]
    axes.errorbar(x, values, yerr=[below, above], color=color, marker="o", markersize=4,
                  capsize=2, label=name)  # fmt: skip


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)


def pick(rows: Iterable[Row], model: str, on: str, order: str, quantity: str) -> Row:
    keys = ("model", "on", "order", "quantity")
    wanted = (model, on, order, quantity)
    return next(row for row in rows if tuple(row[key] for key in keys) == wanted)


def graph(rows: Iterable[Row], model: str, on: str, order: str) -> str:
    mine = [
        row for row in rows
        if (row["model"], row["order"], row["quantity"]) == (model, order, "spanning")
        and row["by"] in {on, ""}
    ]  # fmt: skip
    return f"{100 * mine[0]['value']:.2f}%" if mine else "–"


def known(value: Any) -> bool:
    return isinstance(value, int | float) and value == value


def share(row: Row) -> str:
    if not known(row["value"]):
        return row["outcome"].replace("_", " ")
    return spread(row | {"value_low": row["low"], "value_high": row["high"]}, "value", "%")


def spread(row: Row, key: str, unit: str) -> str:
    value, *ends = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
    low, high = (f"{100 * end:.3g}" if known(end) else "beyond" for end in ends)
    return f"{100 * value:.3g}{unit} ({low} to {high})"


def number(row: Row, form: str = ".3g") -> str:
    if not known(row["value"]):
        return row["outcome"].replace("_", " ")
    low, high = (f"{row[end]:{form}}" if known(row[end]) else "beyond" for end in ("low", "high"))
    return f"{row['value']:{form}} ({low} to {high})"


def points(row: Row) -> Row:
    """A difference of shares in percentage points."""
    scaled = {k: 100 * row[k] if known(row[k]) else row[k] for k in ("value", "low", "high")}
    return {**row, **scaled}


def exponent(row: Row) -> str:
    if not known(row["exponent"]):
        return row["outcome"].replace("_", " ")
    return f"{row['exponent']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

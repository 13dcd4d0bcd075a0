"""The tables and the plot of ``docs/evidence.md`` from the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import table

from proving import figures

Line = dict[str, Any]
PLOT = "pruning.png"


def write(docs: Path, known: dict[str, Any]) -> None:
    """Replace what stands between the markers of each study that has figures."""
    for name, render in (("pruning", _pruning), ("merging", _merging), ("calibrating", _calib)):
        if name in known:
            marks = (f"<!-- {name}: begin -->", f"<!-- {name}: end -->")
            table.write(docs / "evidence.md", render(known[name]) + "\n", marks)
    if "pruning" in known:
        figures.draw(known["pruning"]["lines"], docs / "images" / PLOT)


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def _verdict(found: Sequence[dict[str, float]]) -> tuple[int, int, int]:
    """How many differences are below zero, above it, and unresolved."""
    below = sum(one["high"] < 0 for one in found)
    above = sum(one["low"] > 0 for one in found)
    return below, above, len(found) - below - above


def _each(rows: dict[str, Any]) -> str:
    return ", ".join(f"{count} of {task}" for task, count in rows.items())


def _made(study: dict[str, Any]) -> str:
    took = f"{study['cpu_seconds']} s of CPU time; " if study["cpu_seconds"] else ""
    return f"{took}{study['machine']}."


def _pruning(study: dict[str, Any]) -> str:
    lines: list[Line] = study["lines"]
    tasks = [task for task in study["rows"] if task != "mean"]
    rows = []
    for mean in lines:
        if mean["task"] != "mean":
            continue
        level = ("model", "structure", "sparsity")
        same = {one["task"]: one for one in lines if all(one[k] == mean[k] for k in level)}
        best = min(mean["increase"], key=lambda m, f=mean["increase"]: f[m]["value"])
        cells = [
            f"**{one['value']:.3f}**" if method == best else f"{one['value']:.3f}"
            for method, one in mean["increase"].items()
        ]
        what = f"{mean['model']}, {mean['sparsity']:.0%} of {mean['structure']}s"
        rows.append([what, *cells, *(_interval(same[task]["difference"]) for task in tasks)])
    methods = list(lines[0]["increase"])
    header = ["", *methods, *(f"obd − magnitude, {task}" for task in tasks)]
    said = []
    for structure in ("weight", "head", "neuron"):
        of_it = [one for one in lines if one["structure"] == structure and one["task"] != "mean"]
        below, above, open_ones = _verdict([one["difference"] for one in of_it])
        said.append(
            f"Of {len(of_it)} comparisons with magnitude over {structure}s (model, task, sparsity) "
            f"OBD costs less in {below}, more in {above}, unresolved in {open_ones}"
        )
        for other, name in (("random", "random"), ("fisher", "the bare Fisher")):
            pairs = [(_value(one, "obd"), _value(one, other)) for one in of_it]
            less, equal = sum(a < b for a, b in pairs), sum(a == b for a, b in pairs)
            said[-1] += f"; point estimates below {name} in {less}, equal in {equal}"
        said[-1] += "."
    fallen = [
        f"{one['model']} on {one['task']}, {one['sparsity']:.0%} of {one['structure']}s"
        for one in lines
        if one["task"] != "mean" and one["increase"]["obd"]["high"] < 0
    ]
    if fallen:
        said.append(f"Removal by OBD lowers the loss, interval below zero: {'; '.join(fallen)}.")
    counts = {task: f"{by} + {on}" for task, (by, on) in study["rows"].items()}
    return (
        f"![Loss increase over sparsity](images/{PLOT})\n\n{table.markdown(header, rows)}\n\n"
        + "\n".join(f"- {one}" for one in said)
        + f"\n\nRows to choose by + to measure on: {_each(counts)}. {_made(study)}"
    )


def _value(line: Line, method: str) -> float:
    return line["increase"][method]["value"]


def _merging(study: dict[str, Any]) -> str:
    tasks = list(study["rows"])
    rows = []
    for name, ends in study["ends"].items():
        mean = sum(ends.values()) / len(tasks)
        rows.append([name, *(f"{ends[t]:.3f}" for t in tasks), f"{mean:.3f}", "–", "–"])
    for line in study["lines"]:
        mean = sum(line["losses"].values()) / len(tasks)
        is_mean = line["way"] == "mean"
        spread = f"{min(line['seeds']):+.3f} to {max(line['seeds']):+.3f}"
        difference = "–" if is_mean else _interval(line["difference"])
        rows.append([
            line["way"],
            *(f"{line['losses'][t]:.3f}" for t in tasks),
            f"{mean:.3f}",
            difference,
            "–" if is_mean else spread,
        ])
    header = ["", *(f"loss, {t}" for t in tasks), "mean", "minus the plain mean", "each seed's"]
    costs = [
        [
            line["way"],
            *(
                cell
                for t in tasks
                for cell in (f"{line['predicted'][t]:.3f}", _interval(line["measured"][t]))
            ),
        ]
        for line in study["lines"]
    ]
    cost_header = ["", *(f"{what}, {t}" for t in tasks for what in ("predicted", "measured"))]
    order = sorted(study["lines"], key=lambda one: sum(one["losses"].values()))
    said = [f"- Least mean loss: {order[0]['way']}; most: {order[-1]['way']}."]
    for line in study["lines"]:
        if line["way"].startswith("Fisher"):
            said.append(f"- {line['way']}: {_against_mean(line['difference'])}.")
    ratios = [
        line["measured"][t]["value"] / line["predicted"][t]
        for line in study["lines"]
        for t in tasks
        if line["predicted"][t] > 0
    ]
    said.append(
        f"- Measured cost over predicted cost is between {min(ratios):.2f} and {max(ratios):.2f}."
    )
    sizes = study["sizes"]
    return (
        f"{table.markdown(header, rows)}\n\nWhat each copy pays on its own task (nats per token):"
        f"\n\n{table.markdown(cost_header, costs)}\n\n"
        + "\n".join(said)
        + f"\n\n{sizes['seeds']} pairs of copies, {sizes['steps']} steps each. Held-out rows: "
        f"{_each(study['rows'])}; training rows of the Fishers: {_each(study['fisher_rows'])}. "
        + _made(study)
    )


def _against_mean(difference: dict[str, float]) -> str:
    below, above, _ = _verdict([difference])
    if below:
        return "better than the plain mean"
    return "worse than the plain mean" if above else "not told apart from the plain mean"


def _calib(study: dict[str, Any]) -> str:
    rows = []
    for line in study["lines"]:
        ece, (stated, now) = line["ece"], line["confidence"]
        spread = f"{min(ece['seeds']):+.3f} to {max(ece['seeds']):+.3f}"
        rows.append([
            line["case"],
            line["way"],
            f"{stated:.2f} → {now:.2f}",
            f"{line['accuracy']:.2f}",
            _interval(line["nll"]),
            f"{ece['before']:.3f} → {ece['after']:.3f}; {_interval(ece)}",
            "–" if len(ece["seeds"]) == 1 else spread,
            f"{line['honest']:.3f}",
            f"{line['setting']:.3g}",
        ])
    header = ["", "by", "confidence", "accuracy", "NLL", "ECE", "each seed's", "honest", "δ or T"]
    said = []
    for way in dict.fromkeys(line["way"] for line in study["lines"]):
        own = [line for line in study["lines"] if line["way"] == way]
        parts = []
        for measure in ("nll", "ece"):
            below, above, open_ones = _verdict([line[measure] for line in own])
            parts.append(
                f"{measure.upper()} falls in {below}, rises in {above}, unresolved in {open_ones}"
            )
        said.append(f"- {way.capitalize()}, of {len(own)} cases: {'; '.join(parts)}.")
    counts = ", ".join(str(n) for n in dict.fromkeys(one["predictions"] for one in study["lines"]))
    return (
        f"{table.markdown(header, rows)}\n\n"
        + "\n".join(said)
        + f"\n\nPredictions measured on, case by case: {counts}. {_made(study)}"
    )

"""Does the demo's instruct model break sooner than its base model? A study at equal progress.

    python benchmarks/brittleness.py            # rewrites results/ and the tables of docs/
    python benchmarks/brittleness.py --page     # tables and figures from the numbers in results/

Both models learn what neither was trained on: the names of characters, from Python's unicodedata.
Code and prose, which both were trained on, may be damaged; in a study of its own also qa, which
the instruct model alone was tuned on. Finished runs are kept, so that a study goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import table
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import fisherscope as fs
from fisherscope.demo import build
from fisherscope.demo.passages import evenly
from fisherscope.results import plain

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "brittleness.json"
PAGE = ROOT / "docs" / "brittleness.md"
IMAGE = ROOT / "docs" / "images" / "brittleness.png"
MARKS = ("<!-- brittleness: begin -->", "<!-- brittleness: end -->")
# Old tasks, share of the attainable progress, and looks at Fisher and curvature.
STUDIES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "code and prose": (("code", "prose"), {"share": 0.8, "looks": 1}),
    "code and prose, all the way": (
        ("code", "prose"),
        {"share": 1.0, "looks": 0, "seeds": (1, 2, 3)},
    ),
    "qa": (("qa",), {"share": 0.8, "looks": 0}),
}
LENGTH, ROWS, LESSONS, HELD_OUT = 48, 20, 256, 64
OPTIONS: dict[str, Any] = {
    "rates": (1e-4, 3e-4, 1e-3, 3e-3),
    "steps": 24,
    "every": 4,
    "batch_rows": 8,
    "seeds": (1, 2, 3, 4, 5),
}
LOOKS = {"base": ("#0072b2", "o"), "instruct": ("#d55e00", "s")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = os.environ.get("FISHERSCOPE_DEMO", ROOT / "runs" / "demo")
    parser.add_argument("--demo", type=Path, default=Path(default))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "brittleness")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    if not chosen.page:
        torch.set_num_threads(1)
        for known in measure(chosen.demo, chosen.runs):
            RESULTS.write_text(json.dumps(known) + "\n")
    known = json.loads(RESULTS.read_text())
    draw(known["studies"], IMAGE)
    table.write(PAGE, render(known) + "\n", MARKS)


def measure(folder: Path, runs: Path) -> Iterator[dict[str, Any]]:
    """All that is known after each study."""
    start = time.process_time()
    if not (folder / "models").is_dir():
        build(folder)
    places = {name: folder / "models" / name for name in LOOKS}
    tokenizer = AutoTokenizer.from_pretrained(places["base"])
    models = {n: AutoModelForCausalLM.from_pretrained(p).eval() for n, p in places.items()}
    learn, held_out = characters(tokenizer)
    studies = {}
    for name, (tasks, more) in STUDIES.items():
        rows = {
            task: evenly(
                fs.read_jsonl(folder / "tasks" / f"{task}.jsonl", tokenizer, max_length=LENGTH),
                ROWS,
            )
            for task in tasks
        }
        found = fs.brittleness(
            models, learn, rows, held_out=held_out, folder=runs,
            **{**OPTIONS, **more},
        )  # fmt: skip
        studies[name] = {**found.to_dict(), "findings": found.findings()}
        print(*found.findings(), sep="\n")
        yield plain({
            "studies": studies,
            "options": OPTIONS,
            "cpu_seconds": round(time.process_time() - start),
            "machine": f"{platform.system()} {platform.machine()}, Python "
            f"{platform.python_version()}, torch {torch.__version__}, transformers "
            f"{transformers.__version__}, 1 thread",
        })


def characters(tokenizer: Any) -> tuple[list[fs.Example], list[fs.Example]]:
    """Rows such as ``U+00E9 is Latin small letter e with acute.``, to learn and to measure."""
    names = {code: unicodedata.name(chr(code), "") for code in range(0x20, 0x3000)}
    texts = [f"U+{code:04X} is {name.capitalize()}." for code, name in names.items() if name]
    random.Random(0).shuffle(texts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "characters.jsonl"
        rows = [{"id": text[:6], "text": text} for text in texts[: LESSONS + HELD_OUT]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = fs.read_jsonl(path, tokenizer, max_length=LENGTH)
    return found[:LESSONS], found[LESSONS:]


def render(known: Mapping[str, Any]) -> str:
    options, main_study = known["options"], known["studies"]["code and prose"]
    lines = ["![Damage against progress, and ratios](images/brittleness.png)", ""]
    for name, study in known["studies"].items():
        lines += [f"**{name.capitalize()}** as the old tasks:", ""]
        lines += [f"- {line}" for line in study["findings"]]
        lines.append("")
    header = ["old tasks", "compared", "damage of instruct", "damage of base", "ratio", "outcome"]
    rows = [
        [
            row["task"] if row["task"] != "all" else name,
            WHERE[row["criterion"]],
            *(spread(row, key) for key in ("damage", "reference_damage", "ratio")),
            row["outcome"].replace("_", " "),
        ]
        for name, study in known["studies"].items()
        for row in study["ratios"]
        if len(STUDIES[name][0]) > 1 or row["task"] == "all"
    ]
    lines += [table.markdown(header, rows), ""]
    rows = [
        [
            f"{row['task']}, {row['model']}",
            f"{row['step']:.0f}",
            spread(row, "trace"),
            spread(row, "top"),
            *(spread(row, key) for key in ("first", "second", "measured", "curvature_share")),
        ]
        for study in known["studies"].values()
        for row in study["geometry"]
    ]
    header = ["", "step", "trace per token", "held by the top 1%", "first order", "second order"]
    lines += [table.markdown([*header, "measured", "share of the curvature"], rows), ""]
    rates = ", ".join(
        f"{row['model']} {row['rate']:.3g} (progress {row['progress']:.3f})"
        for row in main_study["rates"]
        if row["chosen"]
    )
    intact = ", ".join(
        f"{row['task']} {row['intact']:.3f} in {row['model']}"
        for row in main_study["collapse"]
        if row["arm"] == "matched"
    )
    lines.append(f"Losses at the start, nats per token: {intact}.")
    lines.append("")
    lines.append(
        f"New task: {LESSONS} rows to learn and {HELD_OUT} to measure on; old tasks: {ROWS} "
        f"held-out rows each of at most {LENGTH} tokens; {options['steps']} steps of "
        f"{options['batch_rows']} rows, {len(options['seeds'])} seeds (all the way: 3). Goal "
        f"of the matching {main_study['goal']:.3f} nats per token; rates: {rates}. "
        f"{known['machine']}; {known['cpu_seconds']} s of processor time, without runs kept "
        "from earlier calls."
    )
    return "\n".join(lines)


def draw(studies: Mapping[str, Any], path: Path) -> None:
    """Damage against progress, one panel per old task, and the ratios beside them."""
    panels = [(name, study, task) for name, study in studies.items() for task in STUDIES[name][0]]
    lines = -(-(len(panels) + 1) // 3)
    figure, panes = plt.subplots(lines, 3, figsize=(10.5, 3 * lines), layout="constrained")
    grid = panes.ravel()
    for axes in grid[len(panels) + 1 :]:
        axes.set_axis_off()
    for axes, (name, study, task) in zip(grid, panels, strict=False):
        for model, (colour, mark) in LOOKS.items():
            place = {"model": model, "arm": "matched"}
            for seed in known_seeds(study):
                own = {
                    t: [r["loss"] for r in chosen(study["runs"], **place, seed=seed, task=t)]
                    for t in ("new", task)
                }
                x = [own["new"][0] - loss for loss in own["new"]]
                y = [loss - own[task][0] for loss in own[task]]
                axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.5)
            rows = chosen(study["curves"], **place, task=task)
            x, y, low, high = (
                [r[key] for r in rows]
                for key in ("progress", "damage", "damage_low", "damage_high")
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, y, color=colour, marker=mark, markersize=4, label=model)
        axes.axhline(0, color="#9aa3ad", linewidth=0.8)
        how = name.partition(",")[2]
        axes.set_title(f"{task},{how}" if how else task, fontsize=10)
        axes.set_xlabel("progress on the new task (nats per token)", fontsize=9)
    grid[0].set_ylabel("damage (nats per token)", fontsize=9)
    grid[0].legend(frameon=False)
    bars(grid[len(panels)], studies)
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def bars(axes: Any, studies: Mapping[str, Any]) -> None:
    """The ratio of each study with its interval, and the null."""
    rows = [
        (f"{name},\n{WHERE[row['criterion']]}", row)
        for name, study in studies.items()
        for row in study["ratios"]
        if row["task"] == "all"
    ]
    for place, (_, row) in enumerate(rows):
        if row["ratio"] is None:
            axes.text(1.03, place, "no ratio", va="center", fontsize=7, color="#6b7280")
            continue
        axes.plot([row["ratio_low"], row["ratio_high"]], [place, place], color="#1c2128")
        axes.plot([row["ratio"]], [place], "o", color="#1c2128", markersize=5)
    axes.axvline(1, color="#9aa3ad", linewidth=0.8)
    axes.set_xlim(0, max(1.6, axes.get_xlim()[1]))
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_title("damage of instruct / base", fontsize=10)


def known_seeds(study: Mapping[str, Any]) -> list[int]:
    return list(dict.fromkeys(row["seed"] for row in study["runs"]))


def chosen(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def spread(row: Mapping[str, Any], key: str) -> str:
    value, low, high = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    shown = [f"{v:.4g}" if abs(v) >= 100 else f"{v:.3g}" for v in (value, low or 0, high or 0)]
    return shown[0] if low is None else f"{shown[0]} ({shown[1]} to {shown[2]})"


WHERE = {"progress": "equal progress", "level": "equal loss", "same_rate": "equal rate"}


if __name__ == "__main__":
    main()

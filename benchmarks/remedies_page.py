"""The tables and figures of ``docs/remedies.md`` from the figures in ``results/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import table

from fisherscope.report.figures import STUDIES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "remedies.md"
IMAGES = ROOT / "docs" / "images"
MARKS = ("<!-- remedies: begin -->", "<!-- remedies: end -->")
# A standalone picture needs what the page around it gives otherwise.
SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
PAPER = '<rect width="100%" height="100%" fill="#ffffff"/>'


def write(results: Mapping[str, Any]) -> None:
    """Put what has been measured between the page's marks, and its pictures beside it."""
    study = results["study"]
    shown = [line for spec in STUDIES["remedies"] for line in _figure(spec, study)]
    parts = [
        "\n".join(f"- {line}" for line in results["findings"]),
        *shown,
        "Mean loss of the old tasks where the loss of the new one first falls to the level, nats "
        "per token, means over seeds with 95% intervals (differences paired by seed):",
        _levels(study),
        "What each arm trains and keeps (the adapters, a mask with the held weights, a penalty's "
        "Fisher and anchor), and the new task's loss at the end:",
        _arms(study),
        _setting(results),
    ]
    table.write(PAGE, "\n\n".join(parts) + "\n", MARKS)


def _figure(spec: Any, study: Mapping[str, Any]) -> list[str]:
    data = spec.build({"study": study})
    if data is None:
        return []
    name = "remedies.svg" if spec.id == "remedies" else f"remedies_{spec.id}.svg"
    svg = str(data.views()[0].svg).replace("<svg", SVG, 1)
    head, close, rest = svg.partition(">")
    (IMAGES / name).write_text(f"{head}{close}{PAPER}{rest}\n", encoding="utf-8")
    return [f"![{spec.title}](images/{name})", f"*{data.caption()}* {data.reading()}"]


def _levels(study: Mapping[str, Any]) -> str:
    labels = {row["arm"]: row["label"] for row in study["arms"]}
    rows = [
        [
            f"{row['level']:.0%}",
            labels[row["arm"]],
            f"{row['reached']} of {row['n_seeds']}",
            _spread(row, "increase"),
            _against(row, "to_plain"),
            _against(row, "to_null"),
        ]
        for level in study["levels"]
        for row in study["table"]
        if row["level"] == level and row["task"] == "mean"
    ]
    header = ["learnt", "arm", "get there", "old loss, increase", "minus plain", "minus its null"]
    return table.markdown(header, rows)


def _arms(study: Mapping[str, Any]) -> str:
    rows = [
        [
            row["label"],
            f"{row['trainable']:,.0f}",
            f"{row['bytes'] / 1e6:.1f}",
            _spread(row, "final_new"),
            f"{row['diverged']} of {row['n_seeds']}",
        ]
        for row in study["arms"]
        if not row["skipped"]
    ]
    return table.markdown(["arm", "trained", "kept, MB", "new loss at the end", "diverged"], rows)


def _setting(results: Mapping[str, Any]) -> str:
    study = results["study"]
    s, schedule = study["settings"], study["settings"]["schedule"]
    chosen = [row["module"] for row in study["modules"] if row["chosen"]]
    measured = ", ".join(f"{n} rows of {task}" for task, n in s["measured_examples"].items())
    return (
        f"{schedule['steps']} steps of {s['batch_rows']} rows, AdamW at {schedule['peak']:g}, "
        f"seeds {', '.join(map(str, s['seeds']))}; {s['learn_examples']} lessons, measured on "
        f"{measured} every {s['every']} steps. Strength {s['strength']:g}; "
        f"{s['freeze_share']:.0%} frozen, {s['mask_share']:.0%} free under the masks, over the "
        f"{'whole model' if s['scope'] == 'global' else 'tensors'}; LoRA of rank "
        f"{s['lora_rank']} at {s['lora_rate']:g} times the rate on {len(chosen)} of "
        f"{len(study['modules'])} layers: {', '.join(f'`{name}`' for name in chosen)}. Measured on "
        f"{results['machine']}."
    )


def _spread(row: Mapping[str, Any], key: str) -> str:
    value, low, high = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:.3g}" if low is None else f"{value:.3g} ({low:.3g} to {high:.3g})"


def _against(row: Mapping[str, Any], key: str) -> str:
    if row[key] is None:
        return "–"
    return f"{_spread(row, key)}, {row[f'{key}_verdict'].replace('_', ' ')}"

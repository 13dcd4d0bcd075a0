"""Are gradient conflicts real? Fine-tuning without the most conflicting examples, over seeds.

    python benchmarks/conflict.py            # rewrites results/ and the table of docs/
    python benchmarks/conflict.py --page     # the table from the figures in results/

The demo's base model is fine-tuned on lessons (questions and answers); prose is to be kept. Once
with lessons as they are, once with some of them spoilt: the tokens of their answers shuffled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import table
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from fisherscope.data import Example, read_jsonl
from fisherscope.demo import build
from fisherscope.demo.corpora import read_corpora
from fisherscope.results import plain
from fisherscope.studies.conflict import Removal, conflict, removal
from fisherscope.studies.tuning import Schedule

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "conflict.json"
PAGE = ROOT / "docs" / "interference.md"
MARKS = ("<!-- conflict: begin -->", "<!-- conflict: end -->")
LENGTH, ROWS, LESSONS, SPOILT = 64, 60, 120, 40
REMOVED, SEEDS, BATCH = 40, 8, 8
SCHEDULE = Schedule(steps=30, peak=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    if not chosen.page:
        torch.set_num_threads(1)
        RESULTS.write_text(json.dumps(measure(chosen.demo), indent=1) + "\n")
    table.write(PAGE, render(json.loads(RESULTS.read_text())) + "\n", MARKS)


def measure(folder: Path) -> dict[str, Any]:
    start = time.process_time()
    demo = build(folder)
    tokenizer = AutoTokenizer.from_pretrained(demo.base)
    model = AutoModelForCausalLM.from_pretrained(demo.base).eval()
    tasks = {}
    for name, path in demo.tasks.items():
        rows = read_jsonl(path, tokenizer, max_length=LENGTH)
        tasks[name] = rows[:: len(rows) // ROWS][:ROWS]
    lessons = sample(tokenizer, LESSONS + SPOILT)
    spoilt = [spoil(e, i) for i, e in enumerate(lessons[:SPOILT])]
    found = conflict(model, tasks, seed=0)
    studies = {}
    for name, rows in (("as they are", lessons), ("some spoilt", [*spoilt, *lessons[SPOILT:]])):
        result = removal(
            model,
            tasks["prose"],
            rows,
            held_out=tasks["qa"],
            remove=REMOVED,
            schedule=SCHEDULE,
            batch_rows=BATCH,
            seeds=tuple(range(SEEDS)),
            memory_limit="4GB",
        )
        studies[name] = study(result, {e.id for e in spoilt})
    return plain({
        "cosines": found.cosines,
        "norms": found.norms,
        "tests": found.tests,
        "examples": found.examples.groupby(["on", "by", "metric"]).head(5),
        "pairs": found.pairs.groupby(["on", "by", "metric"]).head(5),
        "plan": found.plan.describe(),
        "removal": studies,
        "sizes": {
            "tokens per row": LENGTH,
            "rows of prose": ROWS,
            "lessons": LESSONS + SPOILT,
            "spoilt": SPOILT,
            "removed": REMOVED,
            "seeds": SEEDS,
            "batch": BATCH,
            "schedule": dataclasses.asdict(SCHEDULE),
        },
        "cpu_seconds": round(time.process_time() - start),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, 1 thread",
    })


def sample(tokenizer: Any, count: int) -> list[Example]:
    rows = list(read_corpora().lessons)
    random.Random(0).shuffle(rows)
    path = Path(tempfile.mkdtemp()) / "lessons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    try:
        return read_jsonl(path, tokenizer, max_length=LENGTH)
    finally:
        path.unlink()


def spoil(example: Example, seed: int) -> Example:
    """Shuffle the tokens of the answer."""
    assert example.labels is not None
    at = (example.labels != -100).nonzero().flatten()
    order = torch.randperm(len(at), generator=torch.Generator().manual_seed(seed))
    ids, labels = example.inputs["input_ids"].clone(), example.labels.clone()
    ids[at] = labels[at] = labels[at][order]
    return Example(example.id, {**example.inputs, "input_ids": ids}, labels)


def study(result: Removal, spoilt: set[str]) -> dict[str, Any]:
    tests = result.conflict.tests
    return {
        "differences": result.differences,
        "runs": result.runs,
        "before": result.before,
        "first": result.order[:REMOVED],
        "spoilt_among_first": sum(i in spoilt for i in result.order[:REMOVED]),
        "tests": tests[(tests["on"] == "on") & (tests["by"] == "by")],
    }


def render(known: dict[str, Any]) -> str:
    sizes = known["sizes"]
    rows = []
    for name, one in known["removal"].items():
        means: dict[str, list[float]] = {}
        for run in one["runs"]:
            means.setdefault(run["arm"], []).append(run["loss_on"])
        for line in one["differences"]:
            rows.append([
                f"lessons {name}",
                f"{line['arm']}",
                {"on": "prose", "by": "questions"}[line["loss"]],
                f"{line['value']:+.4f} ({line['low']:+.4f} to {line['high']:+.4f})",
                line["outcome"].replace("_", " "),
            ])
    header = ["trained on", "left out", "loss of", "minus random ones left out", "outcome"]
    said = []
    for name, one in known["removal"].items():
        loss = one["before"]
        after = [run["loss_on"] for run in one["runs"] if run["arm"] == "random"]
        said.append(
            f"- Lessons {name}: fine-tuning takes the loss of prose from {loss['on']:.3f} to "
            f"{sum(after) / len(after):.3f} without random ones. {_verdict(one)}"
        )
    spoilt = known["removal"]["some spoilt"]
    said.append(
        f"- Of the {sizes['removed']} most conflicting lessons {spoilt['spoilt_among_first']} are "
        f"spoilt ones ({sizes['spoilt']} of {sizes['lessons']} are; by chance "
        f"{sizes['removed'] * sizes['spoilt'] / sizes['lessons']:.0f})."
    )
    pairs = [
        [
            f"{line['task_a']} and {line['task_b']}",
            line["metric"],
            f"{line['cosine']:.3f} ({line['low']:.3f} to {line['high']:.3f})",
            line["outcome"].replace("_", " "),
        ]
        for line in known["cosines"]
        if line["scope"] == "all"
    ]
    return (
        f"{table.markdown(header, rows)}\n\n"
        + "\n".join(said)
        + "\n\nCosines of mean gradients at the base model, all layers:\n\n"
        + table.markdown(["tasks", "metric", "cosine", "outcome"], pairs)
        + f"\n\n{sizes['lessons']} lessons, {sizes['removed']} left out, {sizes['seeds']} seeds, "
        f"{sizes['schedule']['steps']} steps of {sizes['batch']} rows, AdamW at "
        f"{sizes['schedule']['peak']:g}; {sizes['rows of prose']} rows of prose, half to find "
        f"conflicts and half to measure; rows cut to {sizes['tokens per row']} tokens. "
        f"{known['cpu_seconds']} s of CPU time; {known['machine']}."
    )


def _verdict(one: dict[str, Any]) -> str:
    found = {(line["arm"], line["loss"]): line["outcome"] for line in one["differences"]}
    words = {
        "better": "keeps prose better than leaving out random ones",
        "worse": "keeps prose worse than leaving out random ones",
        "not_resolved": "is not told apart from leaving out random ones",
        "too_few_seeds": "was tried too few times",
    }
    return (
        f"Leaving out the most conflicting ones {words[found['conflicting', 'on']]}; leaving out "
        f"the most helpful ones {words[found['helpful', 'on']]}."
    )


if __name__ == "__main__":
    main()

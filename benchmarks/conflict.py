"""Are gradient conflicts real? Fine-tuning without the most conflicting examples, over seeds.

    python benchmarks/conflict.py            # rewrites results/ and the table of docs/
    python benchmarks/conflict.py --page     # the table from the figures in results/

The demo's base model is fine-tuned on lessons (questions and answers); prose is to be kept. Once
on lessons alone, once with some of them replaced by noise: tokens of training prose, shuffled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import table
import torch
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
LENGTH, ROWS, LESSONS, NOISE, NOISE_LENGTH = 64, 60, 120, 40, 24
REMOVED, SEEDS, BATCH = 40, 8, 8
STUDIES = ("lessons and noise", "lessons", "cosines")
SCHEDULE = Schedule(steps=40, peak=5e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES)
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    if not chosen.page:
        torch.set_num_threads(1)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for name, found in measure(chosen.demo, chosen.studies):
            known[name] = found
            RESULTS.write_text(json.dumps(known) + "\n")
    table.write(PAGE, render(json.loads(RESULTS.read_text())) + "\n", MARKS)


def measure(folder: Path, studies: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each study as soon as it is done."""
    demo = build(folder)
    tokenizer = AutoTokenizer.from_pretrained(demo.base)
    model = AutoModelForCausalLM.from_pretrained(demo.base).eval()
    tasks = {}
    for name, path in demo.tasks.items():
        rows = read_jsonl(path, tokenizer, max_length=LENGTH)
        tasks[name] = rows[:: len(rows) // ROWS][:ROWS]
    corpora = read_corpora()
    lessons = sample(corpora.lessons, tokenizer, LESSONS + NOISE)
    noise = shuffled("\n".join(corpora.documents["prose"]), tokenizer, NOISE)
    for name in studies:
        start = time.process_time()
        if name == "cosines":
            found = conflict(model, tasks)
            content = {"cosines": found.cosines, "tests": found.tests}
        else:
            result = removal(
                model,
                tasks["prose"],
                lessons if name == "lessons" else [*lessons[NOISE:], *noise],
                held_out=tasks["qa"],
                remove=REMOVED,
                schedule=SCHEDULE,
                batch_rows=BATCH,
                seeds=tuple(range(SEEDS)),
                arms=("conflicting",),
                memory_limit="4GB",
            )
            content = study(result)
        yield name, plain({**content, "cpu_seconds": round(time.process_time() - start)})


def sample(rows: Sequence[dict[str, str]], tokenizer: Any, count: int) -> list[Example]:
    chosen = random.Random(0).sample(list(rows), count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lessons.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        return read_jsonl(path, tokenizer, max_length=LENGTH)


def shuffled(text: str, tokenizer: Any, count: int) -> list[Example]:
    """Stretches of a text with their tokens in random order, all of them supervised."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    source = torch.Generator().manual_seed(0)
    begin = torch.tensor([tokenizer.bos_token_id])
    found = []
    for number in range(count):
        start = int(torch.randint(len(ids) - NOISE_LENGTH, (), generator=source))
        order = torch.randperm(NOISE_LENGTH, generator=source)
        row = torch.cat([begin, ids[start : start + NOISE_LENGTH][order]])
        found.append(Example(f"noise-{number}", {"input_ids": row}, row.clone()))
    return found


def study(result: Removal) -> dict[str, Any]:
    tests = result.conflict.tests
    return {
        "differences": result.differences,
        "runs": result.runs,
        "before": result.before,
        "first": result.order[:REMOVED],
        "noise_among_first": sum(i.startswith("noise") for i in result.order[:REMOVED]),
        "tests": tests[(tests["on"] == "on") & (tests["by"] == "by")],
    }


def render(known: dict[str, Any]) -> str:
    rows, said = [], []
    for name, one in known.items():
        if name == "cosines":
            continue
        found = {line["loss"]: line for line in one["differences"]}
        rows.append([name, *(_interval(found[loss]) for loss in ("on", "by"))])
        after = [run["loss_on"] for run in one["runs"] if run["arm"] == "random"]
        said.append(
            f"- {name.capitalize()}: fine-tuning takes the loss of prose from "
            f"{one['before']['on']:.3f} to {sum(after) / len(after):.3f} with random ones left "
            f"out. Leaving out the most conflicting ones {_WORDS[found['on']['outcome']]}; the "
            f"loss of held-out questions {_OTHER[found['by']['outcome']]}."
        )
    if "lessons and noise" in known:
        said.append(
            f"- Of the {REMOVED} most conflicting examples "
            f"{known['lessons and noise']['noise_among_first']} are noise ({NOISE} of "
            f"{LESSONS + NOISE} are; by chance {REMOVED * NOISE / (LESSONS + NOISE):.0f})."
        )
    header = ["fine-tuned on", "loss of prose", "loss of held-out questions"]
    seconds = ", ".join(
        f"{name} {one['cpu_seconds']}" for name, one in known.items() if "cpu_seconds" in one
    )
    return (
        "Without the most conflicting examples minus without random ones, nats per token, mean "
        f"over seeds with a paired 95% t-interval:\n\n{table.markdown(header, rows)}\n\n"
        + "\n".join(said)
        + _cosines(known.get("cosines"))
        + f"\n\n{LESSONS + NOISE} examples (noise: {NOISE} rows of {NOISE_LENGTH} tokens of "
        f"training prose in random order, in place of as many lessons), {REMOVED} left out, "
        f"{SEEDS} seeds, {SCHEDULE.steps} steps of {BATCH} rows, AdamW at {SCHEDULE.peak:g}; "
        f"conflicts in the natural metric; {ROWS} rows of prose, half to find conflicts and half "
        f"to measure; rows cut to {LENGTH} tokens. One thread; seconds of CPU time: {seconds}."
    )


def _cosines(known: dict[str, Any] | None) -> str:
    if known is None:
        return ""
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
    return "\n\nCosines of mean gradients at the base model, all layers:\n\n" + table.markdown(
        ["tasks", "metric", "cosine", "outcome"], pairs
    )


def _interval(line: dict[str, Any]) -> str:
    outcome = line["outcome"].replace("_", " ")
    return f"{line['value']:+.4f} ({line['low']:+.4f} to {line['high']:+.4f}), {outcome}"


_WORDS = {
    "better": "keeps prose better",
    "worse": "keeps prose worse",
    "not_resolved": "is not told apart from that",
}
_OTHER = {
    "better": "is lower",
    "worse": "is higher",
    "not_resolved": "is not told apart",
}


if __name__ == "__main__":
    main()

from __future__ import annotations

import json

import pytest

from fisherscope.cli import main  # noqa: F401  (imported once, not within a timed test)


@pytest.fixture
def command(model, tasks):
    return (
        "remedy", "--model", model, "--task", f"prose={tasks['prose']}", "--learn",
        f"sums={tasks['sums']}", "--rate", 0.01, "--steps", 4, "--every", 2, "--seeds", 2,
        "--arm", "freeze", "--arm", "ewc", "--freeze-share", 0.3, "--level", 0.5, "-q",
    )  # fmt: skip


def test_remedy_leaves_a_page_and_goes_on(run, command, tmp_path):
    # Catches options that do not reach the study, a page without its figures, and fine-tunings
    # that are done twice.
    out = tmp_path / "run"
    assert "report.html" in run(*command, "--out", out).stdout
    results = json.loads((out / "results.json").read_text())
    assert results["kind"] == "remedies" and set(results["tasks"]) == {"prose", "sums"}
    study = results["study"]
    assert study["name"] == "sums" and study["tasks"] == ["prose"] and study["levels"] == [0.5]
    assert study["settings"]["freeze_share"] == 0.3
    assert study["settings"]["schedule"]["steps"] == 4
    arms = {row["arm"] for row in study["arms"]}
    assert arms == {"plain", "ewc", "l2", "freeze", "freeze_random"}
    page = (out / "report.html").read_text()
    assert "What would have helped?" in page and 'id="tradeoff"' in page
    assert (out / "tables" / "table.parquet").is_file()
    kept = (out / "fine-tunings" / "fine-tunings.jsonl").read_text()
    replay = ("remedy", "--config", out / "config.yaml", *command[5:])
    run(*replay)
    assert (out / "fine-tunings" / "fine-tunings.jsonl").read_text() == kept


def test_remedy_says_what_is_wrong(run, command, tasks, tmp_path):
    out = ("--out", tmp_path / "run")
    wrong = (*command[:6], "sums", *command[7:])
    assert "--learn 'sums' is not NAME=FILE" in run(*wrong, *out, code=2).output
    alone = (*command[:3], *command[5:])
    assert "no --task; give at least one old task" in run(*alone, *out, code=2).output
    both = (*command[:3], "--task", f"sums={tasks['sums']}", *command[3:])
    assert "'sums' is the new task" in run(*both, *out, code=2).output
    assert (
        "freeze_share=1.5 must be" in run(*command, "--freeze-share", 1.5, *out, code=None).output
    )
    same = run(*command, "--held-out", tasks["sums"], *out, code=None).output
    assert "held_out shares" in same
    assert not (tmp_path / "run" / "results.json").exists()

from __future__ import annotations

import json


def test_percolate_leaves_a_page_and_goes_on(run, model, tasks, tmp_path):
    # Would catch: options that do not reach the study, a page without its figure, a Fisher that is
    # estimated on the rows that are watched, and measurements that are done twice.
    out = tmp_path / "run"
    given = [f"--task={name}={path}" for name, path in tasks.items()]
    command = (
        "percolate", "--model", model, *given, "--out", out, "--order", "fisher", "--order",
        "random", "--points", 4, "--repetitions", 2, "--side", 0, "--candidates", 2, "-q",
    )  # fmt: skip
    assert "report.html" in run(*command).stdout
    results = json.loads((out / "results.json").read_text())
    assert results["kind"] == "percolation"
    study = results["study"]
    assert {row["order"] for row in study["curves"]} == {"fisher", "random"}
    assert {row["removed"] for row in study["curves"]} >= {0, 1}
    rows = {row["task"]: row["n_examples"] for row in study["intact"]}
    assert all(2 * rows[name] in (n["n_examples"], n["n_examples"] - 1)
               for name, n in results["tasks"].items())  # fmt: skip
    page = (out / "report.html").read_text()
    assert "How the tasks fail" in page and "Loss while weights are removed" in page
    assert (out / "tables" / "thresholds.parquet").is_file()
    kept = (out / "evaluations" / "evaluations.jsonl").read_text()
    run(*command)
    assert (out / "evaluations" / "evaluations.jsonl").read_text() == kept


def test_percolate_says_what_is_wrong(run, model, tasks, tmp_path):
    # Would catch: a bad option that is found only after the Fishers are estimated, as a traceback.
    given = [f"--task={name}={path}" for name, path in tasks.items()]
    command = ("percolate", "--model", model, *given, "--out", tmp_path / "run")
    assert "points=2 must be" in run(*command, "--points", 2, code=None).output
    two = ("percolate", "--model", f"a={model}", "--model", f"b={model}", *given)
    assert "takes one --model" in run(*two, "--out", tmp_path / "run", code=2).output

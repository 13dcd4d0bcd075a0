from __future__ import annotations

import json

from fisherscope.studies.percolation.watch import Watch


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


def test_an_interrupted_percolate_goes_on_in_its_folder(run, model, tasks, tmp_path, monkeypatch):
    # Would catch: a folder that holds measurements and nothing else, refused as that of no run.
    out = tmp_path / "run"
    given = [f"--task={name}={path}" for name, path in tasks.items()]
    command = (
        "percolate", "--model", model, *given, "--out", out, "--order", "random", "--points", 4,
        "--repetitions", 1, "--side", 0, "--candidates", 0, "--no-graph", "-q",
    )  # fmt: skip
    real, calls = Watch.evaluate, []

    def stop(self, on):
        calls.append(on)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, on)

    monkeypatch.setattr(Watch, "evaluate", stop)
    assert run(*command, code=None).exit_code != 0
    kept = (out / "evaluations" / "evaluations.jsonl").read_text()
    assert kept.count("\n") > 1 and not (out / "results.json").exists()
    monkeypatch.setattr(Watch, "evaluate", real)
    run(*command)
    assert (out / "evaluations" / "evaluations.jsonl").read_text().startswith(kept)
    assert (out / "report.html").is_file()


def test_percolate_compares_several_models(run, model, tasks, tmp_path):
    # Would catch: models that share measurements, a comparison that is not on the page, and
    # fractions, watched rows or the cut at 64 tokens that do not reach the study.
    out = tmp_path / "run"
    given = [f"--task={name}={path}" for name, path in tasks.items()]
    run(
        "percolate", "--model", f"a={model}", "--model", f"b={model}", *given, "--out", out,
        "--order", "fisher", "--order", "random", "--fraction", 0.01, "--fraction", 0.5,
        "--repetitions", 2, "--side", 0, "--candidates", 0, "--no-graph", "--watch", 3, "-q",
    )  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    study = results["study"]
    assert {row["model"] for row in study["curves"]} == {"a", "b"}
    assert {row["n_examples"] for row in study["intact"]} == {3}
    assert len({row["removed"] for row in study["curves"]}) == 4
    same = [row for row in study["differences"] if row["outcome"] == "ok"]
    assert all(row["verdict"] == "not_resolved" for row in same)
    assert {row["quantity"] for row in study["differences"]} == {"midpoint", "robustness"}
    assert "max_length: 64" in (out / "config.yaml").read_text()
    kept = {path.parent.name for path in (out / "evaluations").glob("*/evaluations.jsonl")}
    assert kept == {"a", "b"}


def test_percolate_says_what_is_wrong(run, model, tasks, tmp_path):
    # Would catch: a bad option that is found only after the Fishers are estimated, as a traceback.
    given = [f"--task={name}={path}" for name, path in tasks.items()]
    command = ("percolate", "--model", model, *given, "--out", tmp_path / "run")
    assert "points=2 must be" in run(*command, "--points", 2, code=None).output
    assert "fractions[0]=1.5 must be" in run(*command, "--fraction", 1.5, code=None).output
    assert "--watch=0 must be" in run(*command, "--watch", 0, code=None).output
    assert not (tmp_path / "run").exists()

"""The main job from Python, on other kinds of models and settings than the command line's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import checkpoints
from fisherscope import FisherConfig, FisherStore
from fisherscope.errors import ConfigError, DataError, StoreError
from fisherscope.metrics import DamageConfig, RunConfig, analyze
from fisherscope.metrics.pipeline import estimate_only


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    checkpoints.llama(folder / "llama")
    checkpoints.bert(folder / "classifier")
    checkpoints.bert(folder / "masked", masked=True)
    checkpoints.prose(folder / "prose.jsonl")
    checkpoints.sums(folder / "sums.jsonl")
    checkpoints.labelled(folder / "labels.jsonl")
    checkpoints.labelled(folder / "others.jsonl", seed=1)
    return folder


def config(room, out, model, *tasks, damage=None, **fisher):
    return RunConfig(
        model=str(room / model),
        tasks={name: str(room / f"{name}.jsonl") for name in tasks},
        out=str(out),
        fisher=FisherConfig(**{"halves": True, **fisher}),
        damage=damage or DamageConfig(),
    )


@pytest.mark.parametrize(
    ("model", "tasks", "likelihood", "chance"),
    [
        ("classifier", ("labels", "others"), "classification", 0.69),
        ("masked", ("prose",), "masked-lm", 4.16),
    ],
)
def test_other_kinds_of_models(room, tmp_path, model, tasks, likelihood, chance):
    # Would catch a step that only works for causal language models.
    results = analyze(config(room, tmp_path / "run", model, *tasks), progress=False)
    assert results["model"]["likelihood"] == likelihood
    for task in results["tasks"]:
        assert task["loss"] == pytest.approx(chance, abs=0.3)
    assert len(results["damage"]["cells"]) == len(tasks) ** 2
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


def test_grouped_draws_per_token(room, tmp_path):
    # Would catch a table that silently takes another structure, type or unit than asked for.
    run = config(
        room,
        tmp_path / "run",
        "llama",
        "prose",
        "sums",
        structure="grouped",
        fisher_type="mc",
        unit="token",
        draws=2,
        damage=DamageConfig(enabled=False),
    )
    results = analyze(run, progress=False)
    assert results["damage"]["cells"] == []
    assert results["overlap"] == []
    assert "no-overlap" in {alert["rule"] for alert in results["alerts"]}
    store = FisherStore(tmp_path / "run" / "fisher")
    fisher = store["prose"]
    assert (fisher.identity.structure, fisher.identity.fisher_type) == ("grouped", "mc")
    assert results["tasks"][0]["trace"] == pytest.approx(fisher.trace(per="token"))


def test_examples_that_blow_up_are_skipped_and_listed(room, tmp_path, monkeypatch):
    # Would catch NaN in every table because of one bad row, or a row that vanishes unseen.
    from fisherscope.metrics import preparing

    load = preparing.load_model

    def poisoned(*arguments):
        model = load(*arguments)
        inner = model.model.embed_tokens.forward
        poison = checkpoints.tokenizer()("road")["input_ids"][0]

        def forward(ids):
            return torch.where((ids == poison).any(1)[:, None, None], torch.inf, inner(ids))

        model.model.embed_tokens.forward = forward
        return model

    monkeypatch.setattr(preparing, "load_model", poisoned)
    rows = [json.loads(line) for line in (room / "prose.jsonl").read_text().splitlines()]
    bad = [str(n) for n, row in enumerate(rows) if "road" in row["text"].split()]
    assert 0 < len(bad) < 6
    run = config(room, tmp_path / "run", "llama", "prose", on_nonfinite="skip")
    results = analyze(run, progress=False)
    (task,) = results["tasks"]
    assert sorted(task["skipped"]) == sorted(bad)
    assert task["n_examples"] == len(rows) - len(bad)
    assert task["loss"] is not None
    assert results["damage"]["cells"][0]["measured"] is not None
    assert results["alerts"][0]["rule"] in {"skipped-examples", "few-examples"}


def test_an_interrupted_task_goes_on_within_itself(room, tmp_path, monkeypatch):
    # Would catch a half that is estimated again, or leftovers after the end.
    from fisherscope.engine.sweep import Sweep

    out = tmp_path / "store"
    run = config(room, out, "llama", "prose", batch_size=1)
    sweep, seen = Sweep.run, []

    def counted(self, examples, *arguments, **options):
        if len(examples) == 1:
            seen.append(examples[0].id)
            if len(seen) == limit:
                raise KeyboardInterrupt
        return sweep(self, examples, *arguments, **options)

    limit = -1
    monkeypatch.setattr(Sweep, "run", counted)
    estimate_only(config(room, tmp_path / "whole", "llama", "prose", batch_size=1), progress=False)
    whole, n = len(seen), 8
    seen.clear()
    limit = whole - n + n // 2 + 3
    with pytest.raises(KeyboardInterrupt):
        estimate_only(run, progress=False)
    assert [p.name for p in out.iterdir()] == [".unfinished"]
    assert len(FisherStore(out)) == 0
    seen.clear()
    limit = -1
    estimate_only(run, progress=False)
    # The first half, and the two examples of the second that were complete, are kept.
    assert len(seen) == whole - n // 2 - 2
    assert [p.name for p in out.iterdir()] == ["prose"]
    again, once = FisherStore(out)["prose"], FisherStore(tmp_path / "whole")["prose"]
    assert all(torch.equal(again.sums[name], once.sums[name]) for name in once.sums)


def test_an_unfinished_task_of_other_settings_is_refused(room, tmp_path, monkeypatch):
    # Would catch two halves of different settings put together after an interruption.
    from fisherscope.metrics import estimating

    out = tmp_path / "store"
    estimate = estimating.estimate

    def interrupted(*arguments, **options):
        estimate(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(estimating, "estimate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        estimate_only(config(room, out, "llama", "prose"), progress=False)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="unit is 'token' and 'example'"):
        estimate_only(config(room, out, "llama", "prose", unit="token"), progress=False)


@pytest.mark.parametrize(
    ("model", "task", "said"),
    [
        ("llama", "labels", "labels.jsonl:1: a row with a 'label'"),
        ("masked", "sums", "not plain text"),
        ("masked", "labels", "labels.jsonl:1: a row with a 'label'"),
        ("classifier", "prose", "prose.jsonl:1: no 'label'"),
    ],
)
def test_rows_of_another_kind_of_model_are_refused(room, tmp_path, model, task, said):
    # Would catch labels that are silently ignored, or an index error.
    with pytest.raises(DataError) as caught:
        analyze(config(room, tmp_path / "run", model, task), progress=False)
    assert said in str(caught.value)
    assert f"{task}.jsonl" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_needs_a_folder(room):
    # Would catch results written into whatever folder is current.
    run = RunConfig(model=str(room / "llama"), tasks={"prose": str(room / "prose.jsonl")})
    with pytest.raises(ConfigError, match="--out"):
        analyze(run, progress=False)

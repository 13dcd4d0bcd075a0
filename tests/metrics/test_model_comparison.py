from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import checkpoints
from fisherscope.data import read_jsonl
from fisherscope.errors import DataError, ParameterError, StoreError, TaskError
from fisherscope.metrics import DamageConfig, UnifiedModelAnalyzer
from fisherscope.metrics.losses import TaskLoss
from fisherscope.metrics.model_comparison import compare_models


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("room")
    model = LlamaForCausalLM.from_pretrained(checkpoints.llama(folder / "model"))
    tokenizer = checkpoints.tokenizer()
    tasks = {
        "prose": read_jsonl(checkpoints.prose(folder / "prose.jsonl", 12), tokenizer),
        "sums": read_jsonl(checkpoints.sums(folder / "sums.jsonl", 12), tokenizer),
    }
    sharper = copy.deepcopy(model)
    with torch.no_grad():
        sharper.lm_head.weight *= 3
    return {"plain": model, "sharper": sharper}, tasks


@pytest.fixture(scope="module")
def found(room):
    models, tasks = room
    return UnifiedModelAnalyzer().analyze(models, tasks, progress=False)


def test_a_model_beside_itself_differs_in_nothing(room):
    # Would catch examples resampled independently of each other, or a ratio of unlike sums.
    models, tasks = room
    twins = {"one": models["plain"], "two": copy.deepcopy(models["plain"])}
    compared = UnifiedModelAnalyzer().analyze(twins, tasks, progress=False).comparison
    table = compared.to_frame()
    told = table[table["outcome"] != "described"]
    assert len(told) == 2 * (1 + 1 + 2)
    assert np.allclose(told[["change", "low", "high"]], 0, atol=1e-6)
    assert set(told["outcome"]) <= {"unresolved", "higher", "lower"}
    assert (compared.tensors[["log2_ratio", "low", "high"]].abs() < 1e-6).all(axis=None)
    assert (compared.modules[["log2_ratio", "low", "high"]].abs() < 1e-6).all(axis=None)
    assert (compared.similarity["value"] > 1 - 1e-6).all()


def test_the_changes_are_those_of_the_models(room, found):
    # Would catch reference and other swapped, nats per example for per token, ln for log2.
    models, tasks = room
    table = found.comparison.to_frame().set_index(["task", "quantity"])
    for task, rows in tasks.items():
        losses = []
        for model in models.values():
            sums, n = 0.0, 0
            for example in rows:
                ids, labels = example.inputs["input_ids"][None], example.labels[None]
                tokens = int((labels[0, 1:] != -100).sum())
                with torch.no_grad():
                    sums += tokens * float(model(ids, labels=labels).loss)
                n += tokens
            losses.append(sums / n)
        row = table.loc[task, "loss"]
        assert row["change"] == pytest.approx(losses[1] - losses[0], rel=1e-3, abs=1e-5)
        fishers = [item.fishers[task].trace() for item in found.models.values()]
        ratio = np.log2(fishers[1] / fishers[0])
        assert table.loc[task, "trace"]["change"] == pytest.approx(ratio)
    assert (table["low"].isna() | (table["low"] <= table["change"])).all()
    assert (table["high"].isna() | (table["high"] >= table["change"])).all()


def test_pairing_makes_the_interval_what_examples_leave_open(found):
    # Would catch the unpaired interval, many times as wide: all examples change alike here.
    row = found.comparison.to_frame().query("task == 'prose' and quantity == 'loss'").iloc[0]
    one, other = (item.losses["prose"] for item in found.models.values())
    difference = TaskLoss(one.ids, other.sums - one.sums, one.tokens)
    assert row["paired"]
    assert (row["high"] - row["low"]) / 4 == pytest.approx(difference.se, rel=0.15)


def test_each_tensor_has_its_ratio(found):
    # Would catch tensors matched by position in another order, or traces of the whole.
    tensors = found.comparison.tensors.set_index(["task", "tensor"])
    plain, sharper = (item.fishers["sums"].traces() for item in found.models.values())
    for name, value in plain.items():
        row = tensors.loc["sums", name]
        assert row["log2_ratio"] == pytest.approx(np.log2(sharper[name] / value))
        assert row["low"] <= row["log2_ratio"] <= row["high"]
    modules = found.comparison.modules.set_index(["task", "layer", "module"])
    one, two = (
        sum(t[f"model.layers.1.{n}_layernorm.weight"] for n in ("input", "post_attention"))
        for t in (plain, sharper)
    )
    assert modules.loc[("sums", 1, "norm"), "log2_ratio"] == pytest.approx(np.log2(two / one))


def test_every_fisher_is_estimated_once(room, found, monkeypatch):
    # Would catch work repeated for each question, or keys of two models that collide.
    from fisherscope.metrics import estimating

    models, tasks = room
    calls = []
    estimate = estimating.estimate
    monkeypatch.setattr(
        estimating, "estimate", lambda *a, **k: calls.append(1) or estimate(*a, **k)
    )
    analyzer = UnifiedModelAnalyzer()
    options = {"progress": False, "damage": DamageConfig(enabled=False)}
    analyzer.analyze(models, tasks, **options)
    assert len(calls) == 4
    assert set(analyzer.store) == {f"{m}/{t}" for m in models for t in tasks}
    again = analyzer.analyze(models, tasks, **options)
    assert len(calls) == 4
    for name in models:
        for task in tasks:
            kept = analyzer.store[f"{name}/{task}"]
            assert again.models[name].fishers[task] is kept
            first = found.models[name].fishers[task]
            assert all(torch.equal(kept.sums[n], first.sums[n]) for n in kept.sums)


def test_a_single_model_has_no_comparison(room):
    # Would catch a name that nobody gave in the keys of the store.
    models, tasks = room
    analyzer = UnifiedModelAnalyzer()
    found = analyzer.analyze(
        models["plain"], tasks, progress=False, damage=DamageConfig(enabled=False)
    )
    assert found.comparison is None
    assert list(analyzer.store) == ["prose", "sums"]
    assert list(found.to_frame()["name"]) == ["prose", "sums"]


def test_models_come_back_untouched(room):
    # Would catch weights left displaced by the damage of the last task.
    models, tasks = room
    before = {k: p.detach().clone() for k, p in models["plain"].named_parameters()}
    UnifiedModelAnalyzer().analyze(models["plain"], tasks, progress=False)
    assert all(torch.equal(p, before[k]) for k, p in models["plain"].named_parameters())


def test_other_architectures_are_compared_as_far_as_that_goes(room, tmp_path):
    # Would catch a crash, or ratios of tensors that only share a name.
    models, tasks = room
    wide = LlamaForCausalLM.from_pretrained(checkpoints.llama(tmp_path / "w", vocabulary=96))
    damage = DamageConfig(enabled=False)
    found = UnifiedModelAnalyzer().analyze(
        {"plain": models["plain"], "wide": wide}, tasks, progress=False, damage=damage
    )
    assert found.comparison.unlike == ("wide",)
    assert found.comparison.tensors.empty
    assert {"loss", "trace"} <= set(found.comparison.table["quantity"])


def test_bad_input_is_refused_before_the_first_pass(room, monkeypatch):
    # Would catch an hour's estimate thrown away by the last task.
    from fisherscope.metrics import estimating

    models, tasks = room
    analyzer = UnifiedModelAnalyzer()
    analyzer.analyze(models["plain"], tasks, progress=False, damage=DamageConfig(enabled=False))
    monkeypatch.setattr(estimating, "estimate", lambda *_, **__: pytest.fail("estimated"))
    with pytest.raises(ParameterError, match="at least one model"):
        analyzer.analyze({}, tasks)
    with pytest.raises(TaskError, match="at least one task"):
        analyzer.analyze(models, {})
    with pytest.raises(DataError, match="task 'prose' has one example"):
        analyzer.analyze(models, {"prose": tasks["prose"][:1]})
    with pytest.raises(StoreError, match="'prose' of another run: another model"):
        analyzer.analyze(models["sharper"], tasks)
    with pytest.raises(StoreError, match="other data"):
        analyzer.analyze(models["plain"], {"prose": tasks["sums"]})
    with pytest.raises(ParameterError, match="at least two"):
        compare_models({})

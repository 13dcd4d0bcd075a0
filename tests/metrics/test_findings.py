from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import checkpoints
from fisherscope import estimate
from fisherscope.data import read_jsonl
from fisherscope.defaults import FisherConfig
from fisherscope.metrics.findings import (
    concentration_of,
    coverage_of,
    importance_rows,
    overlap_rows,
    share_errors,
    similarity_rows,
    split_half_spearman,
)
from fisherscope.metrics.losses import task_loss
from fisherscope.preparation import prepare


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A model, two tasks and their Fishers."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("room")
    model = LlamaForCausalLM.from_pretrained(checkpoints.llama(folder / "model"))
    tokenizer = checkpoints.tokenizer()
    tasks = {
        "prose": read_jsonl(checkpoints.prose(folder / "prose.jsonl", 12), tokenizer),
        "sums": read_jsonl(checkpoints.sums(folder / "sums.jsonl", 12), tokenizer),
    }
    fishers = {
        name: estimate(model, examples, halves=True, progress=False)
        for name, examples in tasks.items()
    }
    return model, tasks, fishers


def test_importance_names_place_and_share(room):
    # Would catch a share of something else than the trace, or a tensor in the wrong place.
    _, _, fishers = room
    fisher = fishers["prose"]
    rows = {row["tensor"]: row for row in importance_rows(fisher)}
    row = rows["model.layers.1.mlp.up_proj.weight"]
    diagonal = fisher.diagonal()
    total = sum(float(d.double().sum()) for d in diagonal.values())
    mine = diagonal["model.layers.1.mlp.up_proj.weight"].double()
    assert (row["layer"], row["module"], row["n_parameters"]) == (1, "up_proj", 16 * 24)
    assert row["mean"] == pytest.approx(float(mine.mean()))
    assert row["share"] == pytest.approx(float(mine.sum()) / total)
    assert row["mean_se"] / row["mean"] == pytest.approx(row["relative_se"])
    assert row["reliable"] == (row["relative_se"] <= 0.2)


def test_the_error_of_a_share_is_that_of_a_ratio(room):
    # Would catch the error of the numerator alone: against a bootstrap over examples.
    _, _, fishers = room
    fisher = fishers["sums"]
    names = fisher.ledger.tensors
    errors = share_errors(fisher)
    drawn = fisher.bootstrap(lambda traces: traces / traces.sum(), n=3000)
    for name, spread in zip(names, drawn.std(0), strict=True):
        assert errors[name] == pytest.approx(spread, rel=0.3)
    naive = fisher.standard_error()["lm_head.weight"] / fisher.trace()
    assert abs(errors["lm_head.weight"] / naive - 1) > 0.5  # the two differ, so the test bites


def test_one_example_has_no_error(room):
    # Would catch a division by zero, or an error of zero where nothing is known.
    model, tasks, _ = room
    fisher = estimate(model, tasks["prose"][:1], progress=False)
    assert all(np.isnan(error) for error in share_errors(fisher).values())
    assert split_half_spearman(fisher) is None


def test_coverage_counts_every_parameter(room):
    # Would catch a rule that is dropped, or parameters counted as tensors.
    model, _, fishers = room
    covered = coverage_of(fishers["prose"])
    assert sum(c["parameters"] for c in covered.values()) == sum(
        p.numel() for p in model.parameters()
    )
    assert sum(c["tensors"] for c in covered.values()) == len(list(model.parameters()))


def test_concentration_counts_in_parameters(room):
    # Would catch a participation ratio given as a fraction.
    _, _, fishers = room
    curve, participation = concentration_of(fishers["prose"])
    flat = torch.cat([d.flatten() for d in fishers["prose"].diagonal().values()]).double()
    assert participation == pytest.approx(float(flat.sum() ** 2 / flat.square().sum()))
    largest = flat.sort(descending=True).values
    top = float(largest[: round(0.01 * len(flat))].sum() / flat.sum())
    assert curve["top"]["0.01"] == pytest.approx(top, rel=1e-3)
    assert curve["mass"][-1] == pytest.approx(1)


def test_pairs_are_compared_once_each(room):
    # Would catch a pair that is missing, doubled, or compared with itself.
    _, _, fishers = room
    three = {**fishers, "again": fishers["prose"]}
    rows = similarity_rows(three, seed=0)
    pairs = {(row["task_a"], row["task_b"]) for row in rows if row["metric"] == "cosine"}
    assert pairs == {("prose", "sums"), ("prose", "again"), ("sums", "again")}
    same = next(r for r in rows if r["task_b"] == "again" and r["task_a"] == "prose")
    assert same["value"] == pytest.approx(1)
    assert {"ceiling", "floor", "halves", "n_a"} <= set(same)
    overlaps, reason = overlap_rows(three, 0.5)
    assert reason is None
    assert next(r for r in overlaps if r["task_b"] == "again")["jaccard"] == 1
    assert all(row["sparsity"] == 0.5 for row in overlaps)


def test_masks_that_cannot_be_made_are_explained(room):
    # Would catch a run that fails after hours because only norms were asked for.
    model, tasks, _ = room
    fishers = {
        name: estimate(model, examples, parameters="*norm*", progress=False)
        for name, examples in tasks.items()
    }
    rows, reason = overlap_rows(fishers, 0.5)
    assert rows == []
    assert "protected" in (reason or "")


def test_the_loss_is_the_models_own(room):
    # Would catch an unshifted label, a mean of means, or a wrong error.
    model, tasks, _ = room
    sums, counts = [], []
    for example in tasks["sums"]:
        with torch.no_grad():
            output = model(example.inputs["input_ids"][None], labels=example.labels[None])
        counts.append(int((example.labels[1:] != -100).sum()))
        sums.append(float(output.loss) * counts[-1])
    found = task_loss(prepare(model, tasks["sums"], FisherConfig(batch_size=5)))
    assert found.value == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    draws = np.random.default_rng(0).integers(0, len(sums), (4000, len(sums)))
    ratios = np.array(sums)[draws].sum(1) / np.array(counts)[draws].sum(1)
    assert found.se == pytest.approx(ratios.std(), rel=0.2)


def test_a_skipped_example_is_listed(room):
    # Would catch an example that is left out without a word.
    from fisherscope.metrics.estimating import Estimated
    from fisherscope.metrics.findings import task_row
    from fisherscope.metrics.losses import TaskLoss

    _, _, fishers = room
    skipping = dataclasses.replace(fishers["prose"], skipped=("x",))
    loss = TaskLoss(("a", "b"), np.array([2.0, 3.0]), np.array([2, 2]))
    row = task_row("prose", Estimated(skipping, 1.0), loss, 5.0, 0.5)
    assert row["loss"] == 1.25
    assert row["skipped"] == ["x"]
    assert row["trace"] == pytest.approx(fishers["prose"].trace())

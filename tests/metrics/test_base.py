"""Averages along a training run, by task."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import fisherscope as fs
from fisherscope.metrics.base import FisherBase
from oracles import brute, models, rows
from structures.fishers import same_bits

NAMES = ["mlp", "gpt2", "llama-tied"]


def data(name: str, start: int = 0, stop: int | None = None):
    return rows.examples(models.case(name).rows[start:stop])


def moved(model, step: int):
    """The model after some training steps, which need not be good ones."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1 + 0.05 * step)
    return twin


def equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


# Catches: an average that starts at the first value and is corrected all the same (100 times too
# large), sampled labels, squares of batch means, one estimate below five examples and another
# above, an epsilon added to every value, half precision in the store.
@pytest.mark.parametrize("name", NAMES)
def test_first_update_against_brute_force_and_estimate(name):
    case, base = models.case(name), FisherBase()
    base.update_fisher_ema(case.model, data(name), "math")
    sums, _ = brute.reference(name, "example")
    count = len(case.rows)
    expected = {n: s / count for n, s in sums.items()}
    for found in (base.get_bias_corrected_fisher_ema("math"), base.store["math"].diagonal()):
        assert brute.worst(found, expected, case.vanishes)[0] < 1e-5
    assert same_bits(base.store["math"], fs.estimate(case.model, data(name), progress=False))
    found = base._estimate_fisher_diagonal(case.model, data(name))
    assert equal(found, base.store["math"].diagonal())


# Catches: a result that depends on how the data were cut into batches (fully in the neighbour:
# 16 batches of 1 against one of 16 differ 355-fold), or on their order.
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_does_not_depend_on_the_batches(name):
    model, whole = models.case(name).model, data(name)
    expected = fs.estimate(model, whole, progress=False).diagonal()
    for cuts in ([0, 1, 2, 5], [0, 4, 5]):
        base = FisherBase()
        parts = [whole[a:b] for a, b in zip(cuts, [*cuts[1:], len(whole)], strict=True)]
        for part in reversed([part for part in parts if part]):
            seen = base.update_fisher_ema(model, part)
        found = base.store["default"]
        assert (seen.n_examples, found.n_examples) == (len(whole), len(whole))
        for n, tensor in found.diagonal().items():
            torch.testing.assert_close(tensor, expected[n], rtol=1e-4, atol=1e-9)


def test_recent_and_all_so_far_along_a_run():
    # Catches: one of the two averages fed from the other, and fingerprints that refuse training.
    name = "gpt2"
    base = FisherBase(config=fs.FisherConfig(ema_decay=0.5))
    estimates = []
    for step in range(3):
        model = moved(models.case(name).model, step)
        base.update_fisher_ema(model, data(name), "math")
        estimates.append(fs.estimate(model, data(name), progress=False).diagonal())
    for n in estimates[0]:
        f = [e[n].double() for e in estimates]
        mean, ema = sum(f) / 3, (0.125 * f[0] + 0.25 * f[1] + 0.5 * f[2]) / 0.875
        torch.testing.assert_close(base.store["math"].diagonal()[n].double(), mean)
        torch.testing.assert_close(base.get_bias_corrected_fisher_ema("math")[n].double(), ema)
    tokens = 3 * fs.estimate(model, data(name), progress=False).n_tokens
    seen = base.fisher_seen("math")
    assert dataclasses.astuple(seen) == (3, 15, tokens)


# Catches: tokens counted from the attention mask, or from padding (tensorscope: 320 for 304).
def test_tokens_are_those_that_are_predicted():
    case = models.case("gpt2")
    batch = rows.padded(case.rows, left=False, extra=3)
    expected = sum(len(brute.supervised(row, "causal-lm")[0]) for row in case.rows)
    assert FisherBase().update_fisher_ema(case.model, batch).n_tokens == expected


# Catches: a batch that comes again and is refused, dropped, or makes the mean more certain.
def test_the_same_batch_again():
    base = FisherBase()
    for updates in (1, 2, 3):
        seen = base.update_fisher_ema(models.case("mlp").model, data("mlp"))
        assert (seen.updates, seen.n_examples) == (updates, 6 * updates)
    once = fs.estimate(models.case("mlp").model, data("mlp"), progress=False)
    assert equal(base.get_bias_corrected_fisher_ema("default"), once.diagonal())
    for n, tensor in base.store["default"].diagonal().items():
        torch.testing.assert_close(tensor, once.diagonal()[n])
    assert base.store["default"].standard_error()[""] == pytest.approx(once.standard_error()[""])


# Catches: unseeded labels (62% between two calls in the neighbour).
def test_drawn_labels_are_the_same_twice():
    config = fs.FisherConfig(fisher_type="mc", draws=2)
    one, two = (FisherBase(config=config) for _ in range(2))
    for base in (one, two):
        base.update_fisher_ema(models.case("gpt2").model, data("gpt2"))
    assert same_bits(one.store["default"], two.store["default"])


# Catches: state that is not written, not read, rounded, or written as two halves of which an
# interruption leaves one.
@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path, structure):
    config = fs.FisherConfig(ema_decay=0.9, structure=structure)
    straight = FisherBase(config=config)
    for step in range(4):
        model = moved(models.case("gpt2").model, step)
        batch = data("gpt2", step % 2, 3)
        straight.update_fisher_ema(model, batch, "a|b/c")
        FisherBase(fs.FisherStore(tmp_path), config).update_fisher_ema(model, batch, "a|b/c")
    resumed = FisherBase(fs.FisherStore(tmp_path), config)
    assert same_bits(resumed.store["a|b/c"], straight.store["a|b/c"])
    ours, theirs = (b.get_bias_corrected_fisher_ema("a|b/c") for b in (resumed, straight))
    assert equal(ours, theirs)
    assert resumed.fisher_seen("a|b/c") == straight.fisher_seen("a|b/c")


def test_a_write_that_fails_leaves_both_averages_as_they_were(tmp_path, monkeypatch):
    # Catches: a moving average that is one update ahead of its mean.
    base = FisherBase(fs.FisherStore(tmp_path))
    base.update_fisher_ema(models.case("mlp").model, data("mlp"))
    before = base.get_bias_corrected_fisher_ema("default")
    with monkeypatch.context() as patch:
        patch.setattr("fisherscope.structures.folder.os.replace", _fail)
        with pytest.raises(fs.StoreError):
            base.update_fisher_ema(moved(models.case("mlp").model, 1), data("mlp"))
    assert equal(base.get_bias_corrected_fisher_ema("default"), before)
    assert base.fisher_seen().updates == 1


def _fail(*_args):
    raise OSError("no room")


# Catches: a half-done update after an architecture, or its options, changed.
def test_what_cannot_be_averaged_changes_nothing():
    base = FisherBase()
    base.update_fisher_ema(models.case("mlp").model, data("mlp"))
    before = base.store["default"]
    with pytest.raises(fs.IdentityError, match="parameters"):
        base.update_fisher_ema(models.case("gpt2").model, data("gpt2"))
    other = FisherBase(base.store, fs.FisherConfig(unit="token"))
    with pytest.raises(fs.IdentityError, match="unit"):
        other.update_fisher_ema(models.case("mlp").model, data("mlp"))
    assert base.store["default"] is before
    assert base.fisher_seen().updates == 1
    with pytest.raises(fs.ParameterError, match=r"config\.structure='kfac'"):
        FisherBase(base.store, fs.FisherConfig(structure="kfac")).update_fisher_ema(
            models.case("mlp").model, data("mlp")
        )


# Catches (tensorscope 1.0): a task's name that is cut at its "|" or "_", so that all importances
# fall onto one name.
@pytest.mark.parametrize("task", ["a|b", "my_task", "", "../x", "数学"])
def test_any_text_is_a_task(task):
    base = FisherBase()
    base.update_fisher_ema(models.case("mlp").model, data("mlp"), task)
    names = [n for n, _ in models.case("mlp").model.named_parameters()]
    assert list(base.get_bias_corrected_fisher_ema(task)) == names
    assert list(base.store) == [task]


@pytest.mark.parametrize(
    "ask",
    [
        lambda base: base.get_bias_corrected_fisher_ema("maths"),
        lambda base: base._get_ema_fisher_for_task("maths"),
        lambda base: base._ensure_fisher_ema_initialized("maths"),
        lambda base: base.fisher_seen("maths"),
        lambda base: base.reset_fisher_ema("maths"),
        lambda base: base.cleanup_fisher_ema(keep_tasks=["maths"]),
    ],
)
def test_unknown_tasks_name_the_known_ones(ask):
    # Catches: {} with a warning, inf, or a bare KeyError.
    base = FisherBase()
    base.update_fisher_ema(models.case("mlp").model, data("mlp"), "math")
    with pytest.raises(fs.TaskError, match="'maths'.*known: 'math'"):
        ask(base)


def test_a_fisher_without_an_average_says_so():
    # Catches: an average that is made up from a Fisher that was estimated once.
    base = FisherBase()
    base.store["once"] = fs.estimate(models.case("mlp").model, data("mlp"), progress=False)
    with pytest.raises(fs.TaskError, match="no moving average.*update_fisher_ema"):
        base.get_bias_corrected_fisher_ema("once")
    begun = base._ensure_fisher_ema_initialized("run", models.case("mlp").model, data("mlp"))
    assert begun is base.store.ema("run")
    assert base._ensure_fisher_ema_initialized("run").steps == 1


# Catches (tensorscope 1.1.10): a reset that fails without a task, or forgets the moving average
# but goes on from the old mean.
def test_reset_forgets_everything():
    base = FisherBase()
    for task in ("math", "code"):
        base.update_fisher_ema(moved(models.case("mlp").model, 5), data("mlp"), task)
    base.reset_fisher_ema("math")
    assert list(base.store) == ["code"]
    seen = base.update_fisher_ema(models.case("mlp").model, data("mlp"), "math")
    assert (seen.updates, seen.n_examples) == (1, 6)
    fresh = fs.estimate(models.case("mlp").model, data("mlp"), progress=False)
    assert same_bits(base.store["math"], fresh)
    base.reset_fisher_ema()
    assert list(base.store) == []


# Catches (tensorscope 1.1.9): a clean-up by alphabet, one that frees nothing, or one that says
# something else than it freed.
@pytest.mark.parametrize("where", ["memory", "directory"])
def test_cleanup_removes_the_least_recently_used(tmp_path, where):
    base = FisherBase(fs.FisherStore(tmp_path / "store" if where == "directory" else None))
    for task in ("z", "m", "a", "k"):
        base.update_fisher_ema(models.case("mlp").model, data("mlp"), task)
    base.get_bias_corrected_fisher_ema("z")
    assert base.store.least_recent() == ["m", "a", "k", "z"]
    size = base.store.nbytes("m")
    parameters = sum(p.nbytes for p in models.case("mlp").model.parameters())
    ledger = 6 * 8 * (1 + len(list(models.case("mlp").model.parameters())))
    if where == "memory":
        assert size == 2 * parameters + ledger
    else:
        files = [p for p in (tmp_path / "store" / "m").rglob("*") if p.is_file()]
        assert size == sum(p.stat().st_size for p in files) > 2 * parameters
    assert base.cleanup_fisher_ema() == 0
    assert base.cleanup_fisher_ema(max_tasks=3) == size
    assert set(base.store) == {"a", "k", "z"}
    left = sum(base.store.nbytes(task) for task in base.store)
    assert base.cleanup_fisher_ema(memory_limit=left) == 0
    freed = base.cleanup_fisher_ema(memory_limit=left - 1)
    assert set(base.store) == {"k", "z"}
    assert left - freed == sum(base.store.nbytes(task) for task in base.store)
    base.cleanup_fisher_ema(keep_tasks=["k"])
    assert list(base.store) == ["k"]
    base.cleanup_fisher_ema(max_tasks=0)
    assert list(base.store) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tasks": -1}, "max_tasks=-1"),
        ({"memory_limit": "much"}, "memory_limit='much'"),
        ({"memory_limit": -5}, "memory_limit=-5"),
        ({"keep_tasks": "math"}, r"\['math'\]"),
    ],
)
def test_limits_that_make_no_sense(options, said):
    with pytest.raises(fs.ParameterError, match=said):
        FisherBase().cleanup_fisher_ema(**options)


# Catches (tensorscope 1.0, 1.2): 'layers.1' that also takes layers 10 and 11, and another shape
# with a prefix than without.
def test_a_prefix_is_made_of_whole_components():
    torch.manual_seed(0)
    model = models.randomise(models.llama(num_hidden_layers=12))
    base = FisherBase()
    base.update_fisher_ema(model, data("llama-tied", 0, 2), "math")
    every = base._get_ema_fisher_for_task("math")
    for prefix, count in (("layers.1", 9), ("model.layers.11", 9), ("layers", 108), ("norm", 1)):
        part = base._get_ema_fisher_for_task("math", prefix)
        assert len(part) == count
        assert all(f".{prefix}." in f".{name}." for name in part)
        assert all(part[name] is every[name] for name in part)
    found = base._estimate_fisher_diagonal(model, data("llama-tied"), 2, "layers.1")
    assert list(found) == list(base._get_ema_fisher_for_task("math", "layers.1"))
    torch.testing.assert_close(found, base._get_ema_fisher_for_task("math", "layers.1"))
    for prefix in ("layers.12", "ayers.1", "", "layers.1*"):
        with pytest.raises(fs.ParameterError, match="layers_prefix"):
            base._get_ema_fisher_for_task("math", prefix)


def test_what_is_no_store_or_no_config_is_refused():
    with pytest.raises(fs.ParameterError, match="store= is a dict"):
        FisherBase({})
    with pytest.raises(fs.ParameterError, match="config= is a dict"):
        FisherBase(None, {})

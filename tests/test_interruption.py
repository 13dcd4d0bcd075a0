"""Unfinished passes: what is saved, what is refused, and that nothing is lost or counted twice."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import fisherscope as fs
from checkpoints import contents
from fisherscope.engine.observer import Observer
from oracles import models, rows
from oracles.runs import Stop, estimate, passes, poisoned, same, stop_at

STRUCTURES = ("diagonal", "grouped")
FACTORED = ("kfac", "kfac(sharing=reduce,widest=3)", "ekfac", "ekfac(bias=separate)", "block")
OPTIONS = {
    "empirical": {},
    "token": {"unit": "token"},
    "mc": {"fisher_type": "mc", "draws": 3, "seed": 2},
}


def often(place: Path) -> fs.Checkpoint:
    return fs.Checkpoint(place, batches=1)


# Would catch: work that is lost or counted twice; a batch that is half in the sums; draws or
# skipped examples that change on the way; a temporary state that is taken for a finished one.
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["bert-mlm", "layerscale"])
def test_resumes_where_it_was_interrupted(tmp_path, name, structure, options, error):
    options = {**options, "structure": structure, "batch_size": 1}
    case = models.fresh(name)
    place = tmp_path / "state"
    whole = estimate(models.case(name), case.rows, **options)
    count = stop_at(case.model, passes(name, **options) - 1, error)
    with pytest.raises(error):
        estimate(case, case.rows, checkpoint=often(place), **options)
    kept = fs.load(place)
    assert 0 < len(kept.ledger) < len(case.rows)
    count[0] = 10**6
    same(estimate(case, case.rows, checkpoint=often(place), **options), whole)
    resumed = count[0] - 10**6
    # The finished state serves as well, without another pass over the data.
    count[0] = 10**6
    same(estimate(case, case.rows[::-1], checkpoint=str(place), **options), whole)
    assert count[0] - 10**6 < resumed < passes(name, **options)


# Would catch: factors whose rows or inputs start again, a second pass that resumes from the first
# one's state or estimates another basis, a batch half in the factors. Interrupted in
# either pass, the result has the bits of one that was not.
@pytest.mark.parametrize("options", [*OPTIONS.values(), {"memory_limit": 2400}])
@pytest.mark.parametrize("structure", FACTORED)
def test_factors_and_eigenvalues_resume_to_the_same_bits(tmp_path, structure, options):
    options = {**options, "structure": structure, "batch_size": 1}
    name = "mlp"
    if "memory_limit" in options and structure == "block":
        options["memory_limit"] = 10_000
    data = models.case(name).rows[:3]
    case = models.fresh(name)
    count = stop_at(case.model, 0, Stop)
    whole = estimate(case, data, **options)
    for call in (count[0] - 1, count[0] - 4):  # in the last round and in the one before
        case, place = models.fresh(name), tmp_path / str(call)
        count = stop_at(case.model, call, Stop)
        with pytest.raises(Stop):
            estimate(case, data, checkpoint=often(place), **options)
        count[0] = 10**6
        again = estimate(case, data, checkpoint=often(place), **options)
        assert all(torch.equal(again.sums[key], total) for key, total in whole.sums.items())
        assert (again.ledger.squares == whole.ledger.squares).all()
        assert again.identity == whole.identity and again.coverage == whole.coverage


def press_at(model: nn.Module, *calls: int) -> None:
    """Press Ctrl-C in the middle of the given forward passes."""
    count = [0]

    def hook(*_: object) -> None:
        count[0] += 1
        if count[0] in calls:
            signal.raise_signal(signal.SIGINT)

    model.head.register_forward_hook(hook)


# Would catch: an interrupt from the keyboard that throws away what was done since the last
# regular save, or that leaves half a batch in the sums; a signal handler that stays.
def test_an_interrupt_saves_what_is_complete(tmp_path):
    case = models.fresh("mlp")
    press_at(case.model, passes("mlp", batch_size=1) - 1)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        estimate(case, case.rows, checkpoint=tmp_path / "state", batch_size=1)
    assert signal.getsignal(signal.SIGINT) is before
    kept = fs.load(tmp_path / "state")
    assert len(kept.ledger) == len(case.rows) - 1
    mine = [row for row in case.rows if row.id in kept.ledger.ids]
    same(kept, estimate(case, mine))
    whole = estimate(models.case("mlp"), case.rows)
    same(estimate(case, case.rows, checkpoint=tmp_path / "state"), whole)


# Would catch: a user who has to wait for a long batch although he insists, or for nothing at
# all where no state is kept.
@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_interrupt_that_does_not_wait(tmp_path, checkpoint):
    case = models.fresh("mlp")
    last = passes("mlp", batch_size=1) - 1
    reached: list[int] = []

    def twice(*_: object) -> None:
        if count[0] == last:
            for _ in range(1 + checkpoint):
                signal.raise_signal(signal.SIGINT)
            reached.append(count[0])

    count = stop_at(case.model, 0, Stop)
    case.model.register_forward_hook(twice)
    with pytest.raises(KeyboardInterrupt):
        place = tmp_path / "state" if checkpoint else None
        estimate(case, case.rows, checkpoint=place, batch_size=1)
    assert not reached
    if not checkpoint:
        assert not (tmp_path / "state").exists()
        return
    # The batch in flight had added nothing yet, so what is kept holds whole batches only.
    kept = fs.load(tmp_path / "state")
    mine = [row for row in case.rows if row.id in kept.ledger.ids]
    assert 0 < len(mine) < len(case.rows)
    same(kept, estimate(models.case("mlp"), mine))


# Would catch: halves that share one state.
def test_resumes_within_halves(tmp_path):
    case = models.fresh("mlp")
    options = {"batch_size": 1, "halves": True}
    whole = estimate(models.case("mlp"), case.rows, **options)
    stop_at(case.model, passes("mlp", **options) - 1, Stop)
    with pytest.raises(Stop):
        estimate(case, case.rows, checkpoint=often(tmp_path), **options)
    again = estimate(case, case.rows, checkpoint=often(tmp_path), **options)
    same(again, whole)
    for half, expected in zip(again.halves, whole.halves, strict=True):
        same(half, expected)


# Would catch: a foreign state that is silently continued. The message names the field.
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"unit": "token"}, "unit"),
        ({"structure": "grouped"}, "structure"),
        ({"fisher_type": "mc"}, "fisher_type"),
        ({"parameters": "head.*"}, "parameters"),
    ],
)
def test_a_state_of_other_options_is_refused(tmp_path, change, field):
    case = models.fresh("mlp")
    count = stop_at(case.model, 0, Stop)
    estimate(case, case.rows[:4], checkpoint=tmp_path / "state", batch_size=1)
    first, count[0] = count[0], 0
    with pytest.raises(fs.IdentityError, match=field):
        estimate(case, case.rows, checkpoint=tmp_path / "state", batch_size=1, **change)
    assert count[0] <= first - 4  # found out before the pass, not after it


def test_a_state_of_other_data_or_another_model_is_refused(tmp_path):
    case = models.case("mlp")
    estimate(case, case.rows, checkpoint=tmp_path / "state")
    other = rows.points(6, (5,), classes=4, seed=1)
    with pytest.raises(fs.IdentityError, match="data_fingerprint"):
        estimate(case, other, checkpoint=tmp_path / "state")
    with pytest.raises(fs.IdentityError, match="data_fingerprint"):
        estimate(case, case.rows[:3], checkpoint=tmp_path / "state")
    changed = models.fresh("mlp")
    with torch.no_grad():
        changed.model.head.bias[0] += 1e-3
    with pytest.raises(fs.IdentityError, match="model_fingerprint"):
        estimate(changed, case.rows, checkpoint=tmp_path / "state")


# Would catch: more examples than the state was made of refused, although it only grows.
def test_a_state_serves_for_a_larger_data_set(tmp_path):
    case = models.case("mlp")
    estimate(case, case.rows[:4], checkpoint=tmp_path / "state")
    more = estimate(case, case.rows, checkpoint=tmp_path / "state")
    same(more, estimate(case, case.rows))


# Would catch: an empty folder (made by the caller) taken for a broken state.
def test_an_empty_folder_is_a_place_for_the_state(tmp_path):
    case = models.case("mlp")
    fisher = estimate(case, case.rows, checkpoint=tmp_path)
    same(fs.load(tmp_path), fisher)


# Would catch: a skipped example tried again (or counted twice) after an interruption.
def test_skipped_examples_stay_skipped_when_resuming(tmp_path):
    case = models.fresh("mlp")
    data = poisoned(case, {"row-0"})
    options = {"on_nonfinite": "skip", "batch_size": 1, "checkpoint": often(tmp_path / "state")}
    whole = estimate(models.case("mlp"), data, on_nonfinite="skip")
    count = stop_at(case.model, 0, Stop)
    estimate(case, data, on_nonfinite="skip", batch_size=1)
    case = models.fresh("mlp")
    stop_at(case.model, count[0] - 1, Stop)
    with pytest.raises(Stop):
        estimate(case, data, **options)
    again = estimate(case, data, **options)
    assert again.skipped == ("row-0",)
    same(again, whole)


def fail_above(model: nn.Module, rows: int, error: Exception) -> list[int]:
    """Run out of memory in the forward pass of larger batches; sizes of those that went through."""
    sizes: list[int] = []

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > rows:
            raise error
        sizes.append(len(args[0]))

    model.register_forward_pre_hook(hook)
    return sizes


# Would catch: a run of days that ends because one batch is too large; a batch counted twice, or
# half of it; every later batch running into the same wall.
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"structure": "kfac"}, {"on_nonfinite": "skip"}])
def test_out_of_memory_halves_the_batch(error, options):
    case = models.fresh("mlp")
    whole = estimate(models.case("mlp"), case.rows, **options)
    sizes = fail_above(case.model, 2, error)
    same(estimate(case, case.rows, batch_size=5, **options), whole)
    assert sum(sizes[-4:]) == 6  # 2, 1 and 2 of the first batch, 1 of the second


# Would catch: an endless halving; other errors taken for memory; a unit that is silently halved.
@pytest.mark.parametrize(
    ("rows", "error", "options"),
    [
        (0, MemoryError("one example"), {}),
        (2, RuntimeError("another"), {}),
        (2, MemoryError("a unit"), {"unit": "batch", "fisher_type": "mc"}),
    ],
)
def test_what_halving_does_not_help_is_raised(rows, error, options):
    case = models.fresh("mlp")
    verified = models.fresh("mlp")
    count = stop_at(verified.model, 0, Stop)
    estimate(verified, case.rows, batch_size=6, **options)
    calls = 0

    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls >= count[0] and len(args[0]) > rows:
            raise error

    case.model.register_forward_pre_hook(hook)
    with pytest.raises(type(error), match=str(error)):
        estimate(case, case.rows, batch_size=6, **options)


def fail_within(monkeypatch, limit: int, error: Exception, before: int = 0) -> list[int]:
    """Run out of memory in the middle of the backward pass of larger batches."""
    sizes: list[int] = []
    emit = Observer._emit

    def failing(self, sink, name, score, rows, draw):
        if self._batch > limit and name == "first.weight" and len(sizes) >= before:
            raise error
        if name == "first.weight":
            sizes.append(self._batch)
        emit(self, sink, name, score, rows, draw)

    monkeypatch.setattr(Observer, "_emit", failing)
    return sizes


# Planted: halves added to what the failed batch had left in the sums (no _back); the batches
# before it forgotten; those that are saved counted twice (saved taken for 0). Scores of the head
# are in the sums already when the first layer's fail.
@pytest.mark.parametrize("saved", [None, 1, 2])
@pytest.mark.parametrize(
    ("structure", "before"),
    [("diagonal", 4), ("kfac(sharing=reduce)", 4), ("ekfac", 4), ("ekfac", 9), ("dense", 4)],
)
def test_out_of_memory_in_a_backward_pass_halves_the_batch(
    tmp_path, monkeypatch, structure, before, saved
):
    case = models.fresh("mlp")
    more = rows.points(8, (5,), classes=4, seed=3)
    data = [*case.rows, *(rows.Row(f"more-{row.id}", row.inputs, row.labels) for row in more)]
    whole = estimate(models.case("mlp"), data, structure=structure)
    # One batch verifies the rules, and five are a pass: the fourth of one of them fails.
    sizes = fail_within(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"), before)
    place = None if saved is None else fs.Checkpoint(tmp_path / "state", batches=saved)
    found = estimate(case, data, structure=structure, batch_size=3, checkpoint=place)
    same(found, whole)
    assert sizes[before - 1] == 3 and max(sizes[before:]) == 2


# Planted: a pace by the time of day. A day forward would have a state written that is not due,
# a year back none for a year.
@pytest.mark.parametrize(("days", "minutes", "writes"), [(1, 5.0, 1), (-365, 0.0, None)])
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch, days, minutes, writes):
    case, written, jump = models.fresh("bert-mlm"), [], [0.0]
    whole = estimate(models.case("bert-mlm"), case.rows, batch_size=1)
    last, tell, save = passes("bert-mlm", batch_size=1), time.time, fs.Fisher.save
    count = stop_at(case.model, 0, Stop)

    def jumping() -> float:
        jump[0] = 86400.0 * days * (count[0] >= last - 1)
        return tell() + jump[0]

    def noted(fisher: fs.Fisher, place: Path) -> None:
        written.append(fisher.n_examples)
        save(fisher, place)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(fs.Fisher, "save", noted)
    place = fs.Checkpoint(tmp_path / "state", minutes=minutes)
    same(estimate(case, case.rows, batch_size=1, checkpoint=place), whole)
    assert jump[0]  # locks ask for the time of day, to say how old they are
    assert len(written) == (writes or len(case.rows) + 1)
    same(estimate(case, case.rows, checkpoint=place), whole)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


# Planted: the states of other passes not looked for. Would catch: "no Fisher to load" for a folder
# that holds parts of one, or a state that is written beside those that are there.
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"memory_limit": 200}, {}),
        ({}, {"memory_limit": 200}),
        ({"halves": True}, {}),
        ({}, {"halves": True}),
        ({"memory_limit": 200}, {"memory_limit": 400}),
        ({"structure": "ekfac"}, {"structure": "kfac"}),
    ],
)
def test_a_checkpoint_of_other_passes_is_named(tmp_path, before, after):
    case = models.fresh("mlp")
    data = rows.examples(case.rows)
    options = {"checkpoint": tmp_path / "state", "progress": False}
    fs.estimate(case.model, data, **options, **before)
    was = contents(tmp_path)
    with pytest.raises(fs.IdentityError, match=r"state.*(memory_limit|halves)"):
        fs.estimate(case.model, data, **options, **after)
    assert contents(tmp_path) == was


class Parting(torch.nn.Module):
    """Two layers with one input, except where an example is large."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.out = (torch.nn.Linear(6, n) for n in (4, 4, 3))

    def forward(self, x):
        other = x if bool((x[:, 0] < 50).all()) else x.clone()
        both = torch.tanh(self.q(x)) + torch.tanh(self.k(other))
        return self.out(torch.nn.functional.pad(both, (0, 2)))


# Planted: each half covered for itself (they can't be added); a state of before taken for that of
# another estimate, at every further call.
@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
def test_a_layer_that_turns_out_to_be_used_unlike(tmp_path, structure):
    torch.manual_seed(0)
    model, x = Parting(), torch.randn(8, 6)
    x[6, 0] = 100
    data = [fs.data.Example(id=f"{n}", inputs={"0": row}, labels=torch.tensor(n % 3))
            for n, row in enumerate(x)]  # fmt: skip
    options = {"structure": structure, "batch_size": 1, "progress": False}
    plain = fs.estimate(model, data, **options)
    kept = fs.Checkpoint(tmp_path / "state", batches=1)
    fs.estimate(model, data[:5], checkpoint=kept, **options)
    for checkpoint in (kept, kept, None):
        found = fs.estimate(model, data, checkpoint=checkpoint, **options)
        assert found.layout == plain.layout and found.coverage == plain.coverage
        assert all(torch.allclose(found.sums[k], t) for k, t in plain.sums.items())
    halves = fs.estimate(model, data, halves=True, **options)
    assert halves.layout == plain.layout

"""Processes that die, or are told to end in the middle of an estimate: nothing is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import pytest
import torch

import fisherscope as fs
from fisherscope.structures.factors import Factor
from oracles import models
from oracles.killing import Moments, moments_of
from oracles.processes import Child
from oracles.runs import Stop, estimate, same, stop_at

KINDS = {
    "halves of a diagonal": {"structure": "diagonal", "halves": True},
    "ekfac of draws": {"structure": "ekfac", "fisher_type": "mc", "draws": 2},
}
NAME = "mlp"


def run(place: Path, options: dict, **more) -> fs.Fisher:
    case = models.fresh(NAME)
    kept = fs.Checkpoint(place, batches=1)
    return estimate(case, case.rows, checkpoint=kept, batch_size=2, **options, **more)


def die(place: Path, options: dict, moment: int | None) -> Moments:
    run(place.with_name("warm-up"), options)  # what is imported on first use is not a moment
    return moments_of(lambda: run(place, options), die_at=moment)


def readable(folder: Path) -> int:
    """Load all that is there, as the reader of a run would."""
    found = [p.parent for p in folder.rglob("fisher.json")]
    inside = [p for p in found if not any(part.startswith(".") for part in p.parts)]
    for place in inside:
        fs.load(place)
    return len(inside)


def equal_bits(a: fs.Fisher, b: fs.Fisher) -> bool:
    return (
        all(torch.equal(a.sums[key], total) for key, total in b.sums.items())
        and a.ledger.ids == b.ledger.ids
        and bool((a.ledger.squares == b.ledger.squares).all())
        and (a.identity, a.coverage, a.n_units) == (b.identity, b.coverage, b.n_units)
    )


# Would catch: files written in place, a rename before the data are on the disk's side of it, a
# batch in the sums that is not in the books (or the other way round), draws that go on from a
# stream, eigenvectors found again in another layout. Ten moments out of all, half of them while
# something is being saved; twenty over the two kinds.
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(tmp_path, kind):
    options = KINDS[kind]
    expected = estimate(models.fresh(NAME), models.case(NAME).rows, batch_size=2, **options)
    whole = Child(die, tmp_path / "whole" / "state", options, None).value()
    random = Random(kind)
    chosen = random.sample(range(1, whole.count + 1), 5) + random.sample(whole.writing, 5)
    resumed = 0
    for moment in chosen:
        place = tmp_path / str(moment) / "state"
        assert Child(die, place, options, moment).outcome() == ("died", -signal.SIGKILL)
        resumed += readable(place.parent) > 0
        assert equal_bits(run(place, options), expected), moment
        left = [p.name for p in place.parent.rglob(".*")]
        assert not left, (moment, left)
    assert resumed >= 5  # the test is about going on, not about starting again


def told(place: Path, options: dict, number: int, batch: int) -> None:
    """An estimate to which a signal comes in the middle of a batch."""
    case = models.fresh(NAME)
    calls = 0

    def hook(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == batch:
            os.kill(os.getpid(), number)

    case.model.head.register_forward_hook(hook)
    estimate(case, case.rows, checkpoint=place, batch_size=1, **options)


# Would catch: a scheduler's SIGTERM that costs two minutes of work, or that leaves the process
# alive or its lock behind. The first passes of a run verify the rules; a late batch is taken.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, "143"), (signal.SIGINT, "")])
def test_told_to_end_it_saves_within_one_batch(tmp_path, number, code):
    rows = models.case(NAME).rows
    case, place = models.fresh(NAME), tmp_path / "state"
    count = stop_at(case.model, 0, Stop)
    estimate(case, rows, batch_size=1)
    kind, what = Child(told, place, {}, number, count[0] - 1).outcome()
    wanted = {signal.SIGTERM: "SystemExit", signal.SIGINT: "KeyboardInterrupt"}[number]
    assert (kind, what[:2]) == ("raised", (wanted, code))
    assert len(fs.load(place).ledger) == len(rows) - 1
    assert not list(tmp_path.rglob(".*"))
    same(estimate(models.fresh(NAME), rows, checkpoint=place), estimate(models.fresh(NAME), rows))


# Would catch: a signal that comes while the last state is being saved and is then forgotten: the
# process would go on as if nothing had been said.
def test_a_signal_during_the_last_save_is_obeyed(tmp_path, monkeypatch):
    real = fs.DiagonalFisher.save

    def save(self, path):
        os.kill(os.getpid(), signal.SIGTERM)
        real(self, path)

    monkeypatch.setattr(fs.DiagonalFisher, "save", save)
    case = models.case(NAME)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        estimate(case, case.rows, checkpoint=tmp_path / "state")
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(fs.load(tmp_path / "state").ledger) == len(case.rows)


# Would catch: hours of eigendecompositions done again, or done for other factors than these.
def test_each_eigendecomposition_is_kept(tmp_path, monkeypatch):
    case, options = models.case(NAME), {"structure": "ekfac", "batch_size": 2}
    expected = estimate(case, case.rows, **options)
    calls: list[str] = []
    real = Factor.eigenvectors

    def stopping(self):
        if len(calls) == 2:
            raise Stop
        calls.append(self.name)
        return real(self)

    monkeypatch.setattr(Factor, "eigenvectors", stopping)
    with pytest.raises(Stop):
        estimate(case, case.rows, checkpoint=tmp_path / "state", **options)

    def counting(self):
        calls.append(self.name)
        return real(self)

    monkeypatch.setattr(Factor, "eigenvectors", counting)
    again = estimate(case, case.rows, checkpoint=tmp_path / "state", **options)
    assert equal_bits(again, expected)
    assert len(calls) == len(set(calls)) == 6
    # Of other factors nothing is used: more examples, the same names.
    fewer = estimate(case, case.rows[:3], checkpoint=tmp_path / "few", **options)
    (tmp_path / "few" / "eigenvectors").rename(tmp_path / "old")
    kept = fs.Checkpoint(tmp_path / "all")
    (tmp_path / "all").mkdir()
    (tmp_path / "old").rename(tmp_path / "all" / "eigenvectors")
    del calls[:]
    assert equal_bits(estimate(case, case.rows, checkpoint=kept, **options), expected)
    assert len(calls) == 6 and not equal_bits(fewer, expected)


# Would catch: two processes that write one state in turn, each half of the work; a lock that
# outlives the process that held it.
def test_two_estimates_with_one_state_are_refused(tmp_path):
    place = tmp_path / "state"
    case = models.case(NAME)
    with fs.Checkpoint(place).claimed():
        with pytest.raises(fs.StoreError, match=rf"busy \(estimating\): process {os.getpid()} on "):
            estimate(case, case.rows, checkpoint=place)
        kind, what = Child(run, place, {}).outcome()
        assert (kind, what[0]) == ("raised", "StoreError")
        assert f"process {os.getpid()} on" in what[1]
    assert not place.exists()
    same(estimate(case, case.rows, checkpoint=place), estimate(case, case.rows))


@pytest.mark.parametrize(
    "wrong", [{"minutes": -1}, {"minutes": "2"}, {"batches": 0}, {"batches": True}]
)
def test_a_wrong_pace_is_refused(tmp_path, wrong):
    with pytest.raises(fs.ParameterError, match=next(iter(wrong))):
        fs.Checkpoint(tmp_path, **wrong)


# Would catch: a state in somebody else's folder, found out after the pass.
def test_a_foreign_folder_is_refused_first(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    case = models.fresh(NAME)
    count = stop_at(case.model, 0, Stop)
    estimate(case, case.rows, batch_size=1)
    all_of_it, count[0] = count[0], 0
    with pytest.raises(fs.StoreError, match=r"fisher\.json"):
        estimate(case, case.rows, checkpoint=tmp_path, batch_size=1)
    assert count[0] == all_of_it - len(case.rows)

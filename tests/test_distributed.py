"""Several gloo processes make what one makes, and end together whatever happens to one of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import fisherscope as fs
from fisherscope import distributed
from oracles import models
from oracles.comparison import KINDS, MC, close, plain, traces
from oracles.processes import ranks, values
from oracles.runs import estimate, poisoned, same

# Ragged masks and lengths, a tied head: five rows of 4 to 9 tokens, three batches of at most two.
NAME = "gpt2"


def all_kinds(rank: int) -> dict[str, Any]:
    del rank
    case = models.fresh(NAME)
    found = {
        kind: plain(estimate(case, case.rows, batch_size=2, **options))
        for kind, options in KINDS.items()
    }
    # Packed by tokens, the batches are cut so that every rank has some.
    found["packed"] = plain(estimate(case, case.rows))
    # Eigenvectors of (nearly) equal eigenvalues are anybody's choice, so one process works in the
    # basis of all of them.
    for kind in ("ekfac", "ekfac mc"):
        options = {**KINDS[kind], "batch_size": 2}
        basis = estimate(case, case.rows, **{**options, "structure": "kfac"})
        one = estimate(case, case.rows, basis=basis, distributed=False, **options)
        found[f"{kind} in their basis"] = plain(one)
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return all_kinds(0)


# Would catch: a rank whose examples are counted twice or not at all (three batches over two or
# four ranks: one rank has less, or nothing), means instead of sums, draws that depend on the
# rank, eigenvectors that every rank finds for itself, groups of rows that collide.
@pytest.mark.parametrize("world", [2, 3, 4])
def test_many_make_what_one_makes(alone, world):
    found = values(ranks(world, all_kinds))
    for kind, whole in alone.items():
        if kind.endswith("their basis"):
            continue
        for mine in found:
            expected = mine.get(f"{kind} in their basis", whole)
            close(mine[kind], expected, f"{kind}, {world} ranks")
            np.testing.assert_allclose(mine[kind]["squares"], whole["squares"], rtol=1e-5)
            assert traces(mine[kind]) == pytest.approx(traces(whole), rel=1e-6)
        for key, total in found[0][kind]["sums"].items():
            assert all((mine[kind]["sums"][key] == total).all() for mine in found), (kind, key)


def failing(rank: int, how: str, place: str) -> Any:
    """What rank 1 does wrong, the others see."""
    case = models.fresh("mlp")
    data = case.rows
    options: dict[str, Any] = {"batch_size": 1}
    if how == "poison":
        data = poisoned(case, {"row-3"})
    elif how == "other data" and rank == 1:
        data = data[:-1]
    elif how == "other options" and rank == 1:
        options["batch_size"] = 2
    elif how == "no disk":
        options["checkpoint"] = place
    elif how in {"raises", "dies"} and rank == 1:
        calls = 0

        def hook(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 8 and how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if calls == 8:
                raise ZeroDivisionError("on rank 1")

        case.model.register_forward_hook(hook)
    if how == "stays away":
        distributed.JOIN_MINUTES = 0.05
        if rank == 1:
            return None
    return plain(estimate(case, data, **options))


# Would catch: ranks that wait for ever for one that has failed, or that fail without its error.
@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("poison", "NonFiniteError", "'row-3' is not finite"),
        ("raises", "ZeroDivisionError", "on rank 1"),
        ("dies", "RankError", "has lost another rank"),
        ("other data", "IdentityError", "data_fingerprint"),
        ("other options", "IdentityError", "batch_size"),
        ("no disk", "StoreError", "file"),
        ("stays away", "RankError", "distributed=False"),
    ],
)
def test_what_ends_one_ends_all(tmp_path, how, error, said):
    (tmp_path / "file").write_text("x")
    outcomes = ranks(2, failing, how, str(tmp_path / "file" / "state"))
    for rank, (kind, what) in enumerate(outcomes):
        if rank == 1 and how == "dies":
            assert (kind, what) == ("died", -signal.SIGKILL)
        elif rank == 1 and how == "stays away":
            assert kind == "returned"
        else:
            assert (kind, what[0]) == ("raised", error), what
            assert said in what[1]


def interrupted(rank: int, place: str, stop: bool) -> Any:
    case = models.fresh("mlp")
    if stop and rank == 1:
        calls = 0

        def hook(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 8:
                os.kill(os.getpid(), signal.SIGTERM)

        case.model.register_forward_hook(hook)
    kept = fs.Checkpoint(place, batches=1)
    return plain(estimate(case, case.rows, checkpoint=kept, batch_size=1, **MC))


# Would catch: a signal that only one rank obeys; states that hold one rank's share; a resumed
# share counted twice. Two ranks are told to end, three go on, then one.
def test_another_number_of_processes_goes_on(tmp_path):
    place = tmp_path / "state"
    case = models.case("mlp")
    for kind, what in ranks(2, interrupted, str(place), True):
        assert (kind, what[:2]) == ("raised", ("SystemExit", "143"))
    kept = fs.load(place)
    assert 0 < len(kept.ledger) < len(case.rows)
    same(kept, estimate(case, [r for r in case.rows if r.id in kept.ledger.ids], **MC))
    whole = plain(estimate(case, case.rows, **MC))
    for mine in values(ranks(3, interrupted, str(place), False)):
        close(mine, whole, "resumed")
    close(plain(estimate(case, case.rows, checkpoint=Path(place), **MC)), whole, "once more")
    assert not list(tmp_path.rglob(".*"))


def special(rank: int) -> dict[str, Any]:
    case = models.fresh("mlp")
    with torch.random.fork_rng():
        wrapped = DistributedDataParallel(models.fresh("mlp").model)
    skipping = {"on_nonfinite": "skip", "batch_size": 2}
    return {
        "wrapped": plain(fs.estimate(wrapped, fs.examples(_batch(case)), progress=False)),
        "skipped": estimate(case, poisoned(case, {"row-3"}), **skipping).skipped,
        "apart": estimate(case, case.rows[rank : rank + 2], distributed=False).ledger.ids,
    }


def _batch(case: models.Case) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([r.inputs["0"] for r in case.rows]), torch.stack([
        r.labels for r in case.rows
    ])


# Would catch: names that begin with "module."; a forward pass of DDP that waits for a rank that
# has no batch; skipped examples known to one rank only; a rank that can't work alone.
def test_wrapped_models_skipped_examples_and_ranks_that_work_apart():
    case = models.case("mlp")
    whole = plain(fs.estimate(case.model, fs.examples(_batch(case)), progress=False))
    for rank, found in enumerate(values(ranks(2, special))):
        close(found["wrapped"], whole, "wrapped")
        assert found["skipped"] == ("row-3",)
        assert found["apart"] == tuple(r.id for r in case.rows[rank : rank + 2])


# Would catch: a message that is too large, numbers of two types in one message, a scalar.
def test_sums_go_in_bounded_messages(monkeypatch):
    monkeypatch.setattr(distributed, "_BUCKET", 4)
    tensors = [torch.zeros(3), torch.zeros(2, 5), torch.zeros((), dtype=torch.float64)]
    buckets = list(distributed._buckets(tensors))
    assert all(sum(map(len, b)) <= 4 and len({p.dtype for p in b}) == 1 for b in buckets)
    for bucket in buckets:
        for part in bucket:
            part += 1
    assert all(bool((t == 1).all()) for t in tensors)

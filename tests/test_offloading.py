"""Sums on disk, and a memory limit that is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fisherscope as fs
from fisherscope.engine.live import LiveBytes
from fisherscope.engine.mapped import is_mapped
from oracles import models, rows

OPTIONS = {
    "diagonal": {},
    "grouped, halves": {"structure": "grouped", "halves": True},
    "kfac": {"structure": "kfac"},
    "ekfac, halves": {"structure": "ekfac", "halves": True},
    "block, by parts": {"structure": "block", "memory_limit": 1_700_000},
    "halves, by parts": {"halves": True, "memory_limit": 4000},
    "kfac, by parts": {"structure": "kfac", "memory_limit": 16_000},
    "ekfac, by parts": {"structure": "ekfac", "memory_limit": 16_000},
    "skips": {"on_nonfinite": "skip", "batch_size": 2},
}


def sums_of(fisher):
    return [part.sums for part in (fisher, *(fisher.halves or ()))]


# Planted: halves added in memory, finished parts left there. Would catch: sums
# that are zeroed, mixed up or rounded on their way to the disk; any that stays in memory.
@pytest.mark.parametrize("name", OPTIONS)
def test_sums_on_disk_are_the_same_bits(tmp_path, name):
    case = models.case("llama-untied")
    data, options = rows.examples(case.rows), {"progress": False, **OPTIONS[name]}
    known = {k: v for k, v in options.items() if k != "memory_limit"}
    wanted = fs.estimate(case.model, data, **known)
    found = fs.estimate(case.model, data, offload_folder=tmp_path / "sums", **options)
    for mine, theirs in zip(sums_of(found), sums_of(wanted), strict=True):
        assert mine.keys() == theirs.keys()
        for key, total in mine.items():
            assert is_mapped(total) and torch.equal(total, theirs[key]), key
    assert not os.listdir(tmp_path / "sums")
    found.save(tmp_path / "f")
    again = fs.load(tmp_path / "f")
    assert all(torch.equal(again.sums[k], wanted.sums[k]) for k in wanted.sums)


# Would catch: checkpoints that hold other sums than those on disk, or go on from none.
def test_an_interrupted_estimate_goes_on_on_disk(tmp_path):
    case = models.case("gpt2")
    data = rows.examples(case.rows)
    options = {"batch_size": 1, "structure": "kfac", "progress": False}

    def interrupted(name, **more):
        kept = fs.Checkpoint(tmp_path / name, batches=1)
        fs.estimate(case.model, data[:2], checkpoint=kept, **options, **more)
        return fs.estimate(case.model, data, checkpoint=kept, **options, **more)

    wanted = interrupted("memory")
    found = interrupted("disk", offload_folder=tmp_path / "sums")
    assert all(map(is_mapped, found.sums.values()))
    assert all(torch.equal(found.sums[k], wanted.sums[k]) for k in wanted.sums)


# Planted: what is on disk counted as memory.
@pytest.mark.parametrize(
    "options",
    [{}, {"halves": True}, {"memory_limit": 8000}, {"memory_limit": 8000, "halves": True},
     {"structure": "ekfac"}],
)  # fmt: skip
def test_the_plan_knows_what_is_on_disk(tmp_path, monkeypatch, options):
    # As for a model so large that not all of it is verified at once.
    monkeypatch.setattr("fisherscope.engine.verify._MOST_BYTES", 8000)
    case = models.case("llama-untied")
    data = rows.examples(rows.text([12] * 16))
    options = {"batch_size": 2, "offload_folder": tmp_path, **options}
    plan = fs.plan(case.model, data, **options)
    with LiveBytes([*case.model.parameters(), *case.model.buffers()]) as live:
        fisher = fs.estimate(case.model, data, progress=False, **options)
    assert plan.memory_bytes == pytest.approx(live.peak, rel=0.2)
    kept = sum(t.numel() * t.element_size() for part in sums_of(fisher) for t in part.values())
    assert plan.sums_bytes <= options.get("memory_limit", 0)
    if "structure" not in options:
        assert plan.disk_bytes == kept
    assert f"{plan.disk_bytes / 1000:.3g} KB on disk" in str(plan)


# Would catch: passes over the data before anything is said.
def test_a_folder_without_room_is_refused_before_the_first_pass(tmp_path, monkeypatch):
    case = models.case("mlp")
    monkeypatch.setattr("fisherscope.structures.rooms.shutil.disk_usage", lambda _: Usage())
    monkeypatch.setattr("fisherscope.estimation.Pass", None)
    with pytest.raises(fs.ParameterError, match=r"room for 10; .*offload_folder="):
        fs.estimate(case.model, rows.examples(case.rows), offload_folder=tmp_path, progress=False)
    # The same where finished parts go to the folder for temporary files unasked.
    with pytest.raises(fs.ParameterError, match=r"room for 10; .*offload_folder="):
        fs.estimate(case.model, rows.examples(case.rows), memory_limit=200, progress=False)


class Usage:
    free = 10


WORK = """
import json, sys
sys.path[:0] = sys.argv[1:2]
import torch, fisherscope as fs
from fisherscope.metrics.footprint import Footprint
torch.manual_seed(0)
model = torch.nn.Sequential(*(m for _ in range(6) for m in (torch.nn.Linear(1024, 1024),
                                                            torch.nn.ReLU())))
model.append(torch.nn.Linear(1024, 4))
data = (torch.randn(8, 1024), torch.randint(4, (8,)))
options = {"batch_size": 4, "memory_limit": "9MB"}
small = {**options, "parameters": "12.*", "memory_limit": None}
fs.estimate(model, data, progress=False, **small)  # what is needed once is there
for halves in (False, True):
    plan = fs.plan(model, data, halves=halves, **options)
    with Footprint(model) as took:
        fisher = fs.estimate(model, data, progress=False, halves=halves, **options)
    print(json.dumps({"planned": plan.memory_bytes, "took": took.bytes,
                      "sums": 4 * fisher.n_parameters}))
    del fisher
"""


# Planted: finished parts, or the sum of halves, that stay in memory; verification of all parameters
# at once. 25 MB of sums; their halves would be 75. Resident memory, as the kernel counts it.
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux")
def test_a_memory_limit_is_one(tmp_path):
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(Path(fs.__file__).parents[1])],
        env={**os.environ, **allocator, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        found = json.loads(line)
        assert found["sums"] > 25e6
        assert found["took"] == pytest.approx(found["planned"], rel=0.2)
        assert found["took"] < 16e6
    assert len(done.stdout.splitlines()) == 2


def wide():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(8)))
    return model, rows.examples(rows.points(8, (64,), classes=64))


def peak(model, run):
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        run()
    return live.peak


# Planted: the sums of an earlier state added in memory, and thrown away, at the end.
def test_whoever_goes_on_needs_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("fisherscope.engine.verify._MOST_BYTES", 100)
    model, data = wide()
    options = {"offload_folder": tmp_path / "sums", "batch_size": 1, "progress": False}
    kept = fs.Checkpoint(tmp_path / "state", batches=1)
    once = peak(model, lambda: fs.estimate(model, data, **options))
    fs.estimate(model, data[:5], checkpoint=kept, **options)
    monkeypatch.setattr(fs.structures.Fisher, "plus", None)
    again = peak(model, lambda: fs.estimate(model, data, checkpoint=kept, **options))
    # What was loaded is pages of its files, but counts here.
    assert again < once + 1.2 * 4 * sum(p.numel() for p in model.parameters())


# Planted: a limit that only looks at one of the Fishers that are kept: the whole and its halves.
def test_a_limit_holds_for_halves_too():
    model, data = wide()
    size = 4 * sum(p.numel() for p in model.parameters())
    plan = fs.plan(model, data, halves=True, memory_limit=size)
    fisher = fs.estimate(model, data, halves=True, memory_limit=size, progress=False)
    assert plan.rounds == 1 and plan.disk_bytes == 3 * size
    assert all(is_mapped(t) for part in sums_of(fisher) for t in part.values())


# Planted: factors that nobody makes counted against the limit.
def test_a_given_basis_is_not_made_again():
    model, data = wide()
    basis = fs.estimate(model, data, structure="kfac", progress=False)
    assert isinstance(basis, fs.structures.KFACFisher)
    options = {"structure": "ekfac", "basis": basis, "progress": False}
    whole = fs.estimate(model, data, **options)
    limited = fs.estimate(model, data, memory_limit=4 * 64 * 65, **options)  # one layer's
    assert all(torch.equal(limited.sums[k], whole.sums[k]) for k in whole.sums)
    with pytest.raises(fs.ParameterError, match="too small"):
        fs.estimate(model, data, structure="ekfac", memory_limit=64 * 64, progress=False)


# Planted: two sums apart at once; the identity, or the state, of those without the example that
# only one part can't take.
def test_an_example_that_one_part_cannot_take(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 4))
    x = torch.randn(8, 32)
    x[3] *= 1e25  # its squares overflow in the first layer's gradients only
    data = (x, torch.randint(4, (8,)))
    options = {"on_nonfinite": "skip", "batch_size": 1, "progress": False}
    whole = fs.estimate(model, data, **options)
    state = tmp_path / "state"
    limited = fs.estimate(model, data, memory_limit=4740, checkpoint=state, **options)
    assert limited.skipped == whole.skipped != ()
    assert limited.identity == whole.identity
    monkeypatch.setattr("fisherscope.passes.Pass._score", None)
    again = fs.estimate(model, data, memory_limit=4740, checkpoint=state, **options)
    assert all(torch.equal(again.sums[k], limited.sums[k]) for k in limited.sums)


def test_what_is_thrown_away_is_there_once(monkeypatch):
    monkeypatch.setattr("fisherscope.engine.verify._MOST_BYTES", 100)
    model, data = wide()
    hurt = rows.examples(rows.points(8, (64,), classes=64))
    hurt[2].inputs["0"].fill_(float("nan"))
    options = {"on_nonfinite": "skip", "batch_size": 4}
    plan = fs.plan(model, data, **options)
    skipped = []

    def run():
        skipped.extend(fs.estimate(model, hurt, progress=False, **options).skipped)

    found = peak(model, run)
    assert skipped == [hurt[2].id]
    assert found == pytest.approx(plan.memory_bytes, rel=0.2)

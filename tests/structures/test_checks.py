import json
import os
import shutil
from pathlib import Path

import pytest

from fisherscope.store import FisherStore
from fisherscope.structures import FisherEMA, load
from fisherscope.structures.checks import RECORD, check, record
from fisherscope.structures.locks import only_one
from fisherscope.structures.manifest import signed
from structures.fishers import build, same_bits, scores

MATH = build(scores("abc"), halves=([0, 1], [2]))
CODE = build(scores("def", seed=1))


@pytest.fixture
def run(tmp_path) -> Path:
    """A store with an average, within a folder that has files of its own."""
    tmp_path = tmp_path / "run"
    store = FisherStore(tmp_path / "fisher")
    ema = FisherEMA(0.5)
    ema.update(CODE)
    store["math"] = MATH
    store.put("code", CODE, ema)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.parquet").write_bytes(b"numbers")
    (tmp_path / "results.json").write_text("{}\n")
    (tmp_path / RECORD).write_text(json.dumps(record(tmp_path)))
    return tmp_path


def problems(run: Path) -> dict[str, str]:
    found = {f.path.relative_to(run).as_posix(): f.problem for f in check(run)}
    return {name: problem for name, problem in found.items() if problem is not None}


def every_file(run: Path) -> list[str]:
    return sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())


# Would catch: a file that nobody looks at (a half, an average, a table), a check of sizes only.
# Every single file of the run is damaged in turn, in three ways; repair takes away just what
# it belongs to, and what is left is sound.
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damage_to_any_file_is_found_and_repaired(run, damage):
    assert problems(run) == {}
    assert len(list(check(run))) == 4
    spare = run.with_name("spare")
    shutil.copytree(run, spare)
    for name in every_file(run):
        path = run / name
        content = bytearray(path.read_bytes())
        if damage == "missing":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(content[:-1])
        else:
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        found = [f for f in check(run) if f.problem is not None]
        if name == RECORD and damage == "missing":
            assert not found  # a store without a record is a store too
        elif name == RECORD and not found:
            pytest.fail("a damaged record passes")
        else:
            owner = "/".join(name.split("/")[:2]) if name.startswith("fisher/") else name
            named = {f.path.relative_to(run).as_posix() for f in found}
            assert owner in named and (len(named) == 1 or name == RECORD), (name, named)
        if name != RECORD:
            for finding in found:
                finding.repair()
            assert not (run / owner).exists()
            assert all(p == owner for p in problems(run)), name
        shutil.rmtree(run)
        shutil.copytree(spare, run)


# Would catch: the rubbish of killed writers kept for ever, or the last good copy among it thrown
# away, or the work of a writer that is alive.
def test_leftovers_are_told_from_work_in_progress(run):
    store = run / "fisher"
    shutil.copytree(store / "math", store / ".saving.math")
    os.rename(store / "code", store / ".replaced.code")
    (store / ".writing.math").write_text("{}")
    with only_one(store / "math", "writing"):
        assert set(problems(run)) == {"fisher/.replaced.code"}
    (store / ".writing.math").write_text("{}")
    found = [f for f in check(run) if f.problem is not None]
    assert {f.path.name for f in found} == {".saving.math", ".replaced.code", ".writing.math"}
    assert {f.path.name: f.repair() for f in found}[".replaced.code"] == "put back as code"
    assert problems(run) == {}
    assert not list(run.rglob(".*"))
    assert same_bits(load(store / "code"), CODE) and same_bits(load(store / "math"), MATH)


# Planted: everything removed; a predecessor put back over its successor, or although it lacks its
# manifest; a folder that was only being written, or was being removed, put back.
@pytest.mark.parametrize(
    ("left", "whole", "there", "done"),
    [
        (".replaced.", True, False, "put back as code"),
        (".replaced.", True, True, "removed"),
        (".replaced.", False, False, "removed"),
        (".saving.", True, False, "removed"),
        (".removing.", True, False, "removed"),
    ],
)
def test_only_a_whole_predecessor_is_put_back(run, left, whole, there, done):
    store = run / "fisher"
    place = store / f"{left}code"
    shutil.copytree(store / "math", place)
    if not there:
        shutil.rmtree(store / "code")
    if not whole:
        (place / "fisher.json").unlink()
    (finding,) = [f for f in check(run) if f.problem is not None]
    assert finding.repair() == done
    assert not place.exists()
    found, expected = FisherStore(store), CODE if there else MATH
    assert ("code" in found) == (there or done != "removed")
    assert "code" not in found or same_bits(found["code"], expected)


# Would catch: a record that makes us read, or remove, somebody else's files.
def test_a_record_does_not_lead_outside(run):
    content = json.loads((run / RECORD).read_text())
    for name in ("../outside", "/etc/hostname", "tables/../../outside"):
        del content["checksum"]
        content = signed({**content, "files": {name: {"bytes": 1}}})
        (run / RECORD).write_text(json.dumps(content))
        assert list(problems(run)) == [RECORD]

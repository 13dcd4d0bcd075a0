import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fisherscope.errors import ParameterError, StoreError, TaskError
from fisherscope.store import FisherStore
from fisherscope.structures import FisherEMA
from structures.fishers import build, same_bits, scores

MATH = build(scores("abc"))
CODE = build(scores("def", seed=1), structure="grouped")


@pytest.fixture(params=["memory", "directory"])
def store(request, tmp_path):
    return FisherStore(tmp_path / "deep" / "store" if request.param == "directory" else None)


def test_it_is_a_mapping(store):
    # Catches: a verb of the mapping that behaves differently in memory and on disk.
    assert (list(store), len(store), "math" in store, 3 in store) == ([], 0, False, False)
    store["math"] = MATH
    store["code"] = CODE
    assert list(store) == ["code", "math"]
    assert len(store) == 2
    assert store["math"] is MATH
    assert store.get("math") is MATH
    assert store.get("prose") is None
    assert store.get("prose", CODE) is CODE
    assert store.setdefault("math", CODE) is MATH
    assert dict(store.items()) == {"math": MATH, "code": CODE}
    assert store.pop("math") is MATH
    assert store.pop("math", None) is None
    assert list(store) == ["code"]
    store["code"] = MATH
    assert store["code"] is MATH
    del store["code"]
    assert not store
    store.update({"x": MATH, "y": CODE})
    store.clear()
    assert list(store) == []
    assert "tasks=[]" in repr(store)


@pytest.mark.parametrize("verb", ["get", "delete", "pop"])
def test_unknown_tasks_name_the_known_ones(store, verb):
    # Catches: a bare KeyError.
    call = {"get": store.__getitem__, "delete": store.__delitem__, "pop": store.pop}[verb]
    with pytest.raises(TaskError, match=r"^unknown task 'maths'; known: none yet\.$"):
        call("maths")
    store["math"] = MATH
    with pytest.raises(TaskError, match=r"unknown task 'maths'; known: 'math'\.$"):
        call("maths")


def test_only_fishers_under_text(store):
    # Catches: a value that can't be saved, a name that can't be read back.
    with pytest.raises(ParameterError, match="'math'.*dict"):
        store["math"] = {}
    with pytest.raises(TaskError, match=r"task 3 .*str\(3\)"):
        store[3] = MATH
    assert list(store) == []


NAMES = [
    *("", ".", "..", "...", ".saving.x", ".replaced.math", "%", "%25", "%2E", "a/b", "/etc/passwd"),
    *("..\\..\\x", "a|b", "my_task", "con", "näme", "数学", "\n", "\0", "\ud800", "a b", "A", "a"),
    *("fisher.json", "half-0", "~", "*", "<script>"),
]


def test_any_text_is_a_task_and_stays_inside(tmp_path):
    # Catches: names that escape the directory, collide, hide, or come back changed.
    store = FisherStore(tmp_path / "store")
    for name in NAMES:
        store[name] = MATH
    assert list(store) == sorted(NAMES)
    assert {p.name for p in tmp_path.iterdir()} == {"store"}
    assert all(p.name.isascii() for p in (tmp_path / "store").iterdir())
    again = FisherStore(tmp_path / "store")
    assert list(again) == sorted(NAMES)
    for name in NAMES:
        assert same_bits(again[name], MATH)
        del again[name]
        assert name not in again
    assert list((tmp_path / "store").iterdir()) == []


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
@example("%", "").via("the name of the empty task")
@example(".", "%2E").via("the leading dot")
def test_names_and_folders_correspond_one_to_one(tmp_path, one, two):
    # Catches: two tasks that share a folder.
    store = FisherStore(tmp_path)
    folders = [store._folder(name) for name in (one, two)]
    assert (folders[0] == folders[1]) == (one == two)
    for folder in folders:
        assert folder.parent == tmp_path
        assert not folder.name.startswith(".")
        assert folder.name


def test_names_too_long_for_a_file_system_say_so(tmp_path):
    # Catches: ENAMETOOLONG from deep inside.
    store = FisherStore(tmp_path)
    with pytest.raises(TaskError, match="shorter"):
        store["数" * 50] = MATH
    store["x" * 240] = MATH
    store["x" * 240] = CODE
    assert FisherStore(tmp_path)["x" * 240].structure == "grouped"


def test_whoever_shares_a_store_sees_the_same_object(tmp_path):
    # Catches: a fresh copy per access, which doubles memory and lets two analyses diverge.
    FisherStore(tmp_path)["math"] = MATH
    store = FisherStore(tmp_path)
    assert store["math"] is store["math"]
    assert store["math"].sums["a.weight"] is store["math"].sums["a.weight"]


def test_folders_are_read_when_asked_for(tmp_path, monkeypatch):
    # Catches: reading gigabytes in order to list names.
    FisherStore(tmp_path)["math"] = MATH

    def never(path):
        raise AssertionError("read too early")

    monkeypatch.setattr("fisherscope.store.load", never)
    store = FisherStore(tmp_path)
    assert list(store) == ["math"]
    assert len(store) == 1
    assert "math" in store


def test_a_task_replaced_by_another_process_is_read_again(tmp_path):
    # Catches: serving a stale Fisher from the cache.
    ours, theirs = FisherStore(tmp_path), FisherStore(tmp_path)
    ours["math"] = MATH
    assert same_bits(theirs["math"], MATH)
    theirs["math"] = CODE
    assert same_bits(ours["math"], CODE)
    del theirs["math"]
    assert "math" not in ours
    with pytest.raises(TaskError):
        ours["math"]


def test_a_task_left_by_a_killed_writer_is_still_there(tmp_path, monkeypatch):
    # Catches: a task vanishing from the list in the moment between two renames.
    store = FisherStore(tmp_path)
    store["a task"] = MATH
    real, count = os.replace, 0

    def replace(*args, **kwargs):
        nonlocal count
        count += 1
        if count > 1:
            raise OSError("killed")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(StoreError):
            store["a task"] = CODE
    again = FisherStore(tmp_path)
    assert list(again) == ["a task"]
    assert same_bits(again["a task"], MATH)
    assert same_bits(store["a task"], MATH)
    del again["a task"]
    assert list(again) == []
    assert list(tmp_path.iterdir()) == []


def test_other_things_in_the_directory_are_not_tasks(tmp_path):
    # Catches: listing what can't be loaded.
    store = FisherStore(tmp_path)
    store["math"] = MATH
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("x")
    # As a writer leaves it that is killed just before its rename.
    shutil.copytree(tmp_path / "math", tmp_path / ".saving.1")
    assert list(store) == ["math"]
    assert "notes" not in store
    with pytest.raises(StoreError, match="is a file"):
        FisherStore(tmp_path / "file.txt")


def test_damaged_tasks_raise_and_can_be_removed(tmp_path):
    # Catches: a damaged Fisher passing for an unknown task, and one that can't be got rid of.
    store = FisherStore(tmp_path)
    store["math"] = MATH
    shard = tmp_path / "math" / "sums.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(StoreError, match=r"sums\.safetensors"):
        FisherStore(tmp_path)["math"]
    FisherStore(tmp_path).clear()
    assert list(store) == []


def test_failed_writes_leave_the_store_as_it_was(tmp_path, monkeypatch):
    # Catches: memory and disk telling different stories.
    store = FisherStore(tmp_path)
    store["math"] = MATH

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fisherscope.structures.shards.save_file", full)
    with pytest.raises(StoreError, match="No space"):
        store["math"] = CODE
    with pytest.raises(StoreError, match="No space"):
        store["code"] = CODE
    assert store["math"] is MATH
    assert list(store) == ["math"]
    assert torch.equal(FisherStore(tmp_path)["math"].sums["a.bias"], MATH.sums["a.bias"])


# Catches: an average that is copied, lost on disk, left behind by a new Fisher, or by a removal.
def test_a_moving_average_beside_the_fisher(store):
    ema = FisherEMA(0.5)
    ema.update(MATH)
    store.put("math", MATH, ema)
    store["code"] = CODE
    assert store.ema("math") is ema
    assert store.ema("code") is None
    if store.path is not None:
        again = FisherStore(store.path)
        assert list(again) == ["code", "math"]
        assert same_bits(again["math"], MATH)
        read = again.ema("math")
        assert read is again.ema("math")
        assert torch.equal(read.average["a.bias"], ema.average["a.bias"])
        assert again.ema("code") is None
    store["math"] = MATH
    assert store.ema("math") is None
    with pytest.raises(TaskError, match="'maths'.*known: 'code', 'math'"):
        store.ema("maths")


def test_an_average_replaced_by_another_process_is_read_again(tmp_path):
    # Catches: a moving average of one moment beside the mean of another.
    ours, theirs = FisherStore(tmp_path), FisherStore(tmp_path)
    for steps in (1, 2):
        ema = FisherEMA(0.5)
        for _ in range(steps):
            ema.update(MATH)
        theirs.put("math", MATH, ema)
        assert ours.ema("math").steps == steps
    (tmp_path / "math" / "ema" / "ema.json").unlink()
    with pytest.raises(StoreError, match=r"ema\.json"):
        FisherStore(tmp_path).ema("math")


def test_asking_for_the_size_is_no_use(store):
    # Catches: a size that touches every task, so that none is the least recently used.
    for task in ("b", "a"):
        store[task] = MATH
    assert store.nbytes("b") > sum(t.nbytes for t in MATH.sums.values())
    assert store.least_recent() == ["b", "a"]
    _ = store["b"]
    assert store.least_recent() == ["a", "b"]
    with pytest.raises(TaskError, match="'c'"):
        store.nbytes("c")


def test_tasks_that_were_not_asked_for_are_the_least_recent(tmp_path):
    # Catches: an order that is that of the alphabet after a restart.
    for task in ("b", "c", "a"):
        FisherStore(tmp_path)[task] = MATH
    again = FisherStore(tmp_path)
    _ = again["b"]
    assert again.least_recent() == ["c", "a", "b"]

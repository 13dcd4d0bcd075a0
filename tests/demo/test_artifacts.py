import json
import os
import time

import pytest

from fisherscope.demo.artifacts import find, publish
from fisherscope.errors import StoreError

SETTINGS = {"seed": 0}
CONTENT = {"settings": SETTINGS, "train_losses": {"base": [2.0, 1.5]}, "seconds": 3.0}


def fill(stage, text="a"):
    for name in ("base", "instruct"):
        (stage / "models" / name).mkdir(parents=True)
        (stage / "models" / name / "config.json").write_text(text)
    (stage / "tasks").mkdir()
    for name in ("qa", "code"):
        (stage / "tasks" / f"{name}.jsonl").write_text(text)


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_published_is_found_again(tmp_path):
    # Catches a reuse that returns other paths or losses than the build did.
    out = tmp_path / "a" / "demo"
    made = publish(out, CONTENT, fill)
    found = find(out, SETTINGS)
    assert found is not None and found.reused and not made.reused
    assert found.base == made.base == out / "models" / "base"
    assert found.tasks == made.tasks == {n: out / "tasks" / f"{n}.jsonl" for n in ("code", "qa")}
    assert found.train_losses == made.train_losses == {"base": (2.0, 1.5)}
    assert not [name for name in listing(out) if name.startswith(".")]


@pytest.mark.parametrize("name", ["models/base/config.json", "tasks/qa.jsonl"])
def test_a_missing_or_changed_file_makes_it_partial(tmp_path, name):
    # Catches a reuse that trusts the manifest alone.
    publish(tmp_path, CONTENT, fill)
    (tmp_path / name).write_text("b")
    assert find(tmp_path, SETTINGS) is None
    (tmp_path / name).unlink()
    assert find(tmp_path, SETTINGS) is None


def test_other_settings_are_not_reused_and_are_replaced(tmp_path):
    # Catches a second seed that gets the models of the first, and mixed old and new files.
    publish(tmp_path, CONTENT, fill)
    other = {"seed": 1}
    assert find(tmp_path, other) is None
    publish(tmp_path, {**CONTENT, "settings": other}, lambda stage: fill(stage, "new"))
    assert find(tmp_path, other) is not None
    assert (tmp_path / "models" / "base" / "config.json").read_text() == "new"


def test_other_files_in_the_folder_stay(tmp_path):
    # Catches a rebuild that removes a report lying beside the models.
    (tmp_path / "report.html").write_text("mine")
    for _ in range(2):
        publish(tmp_path, CONTENT, fill)
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["models", "tasks"])
def test_foreign_folders_are_refused(tmp_path, name):
    # Catches deleting somebody's models because their folder has the same name.
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match=name):
        find(tmp_path, SETTINGS)


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", '{"format": "other"}'])
def test_foreign_manifests_are_refused(tmp_path, text):
    # Catches a crash on, or the loss of, somebody's manifest.json.
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        find(tmp_path, SETTINGS)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    # Catches an OSError after the training is done.
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        find(tmp_path / "out", SETTINGS)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind(tmp_path, error):
    # Catches half a checkpoint, a staging folder, or new empty folders after a failure.
    def broken(stage):
        fill(stage)
        raise error

    with pytest.raises(error):
        publish(tmp_path / "a" / "demo", CONTENT, broken)
    assert listing(tmp_path) == []


def test_a_failure_leaves_the_earlier_build(tmp_path):
    # Catches removing the old build before the new one is complete.
    publish(tmp_path, CONTENT, fill)
    before = listing(tmp_path)

    def broken(stage):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        publish(tmp_path, CONTENT, broken)
    assert listing(tmp_path) == before
    assert find(tmp_path, SETTINGS) is not None


def test_a_death_between_two_renames_reads_as_partial(tmp_path, monkeypatch):
    # Catches a manifest that vouches for files of two different builds.
    publish(tmp_path, CONTENT, fill)
    moves = []
    real = os.replace

    def dying(source, target):
        moves.append(target)
        if len(moves) == 3:
            raise OSError("killed")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(OSError, match="killed"):
            publish(tmp_path, CONTENT, lambda stage: fill(stage, "new"))
    assert find(tmp_path, SETTINGS) is None
    publish(tmp_path, CONTENT, fill)
    assert find(tmp_path, SETTINGS) is not None


def test_what_a_killed_build_left_is_swept_later(tmp_path):
    # Catches hidden folders that pile up, and a sweep that takes a running build's folder.
    old, young = tmp_path / ".building.old", tmp_path / ".building.young"
    for folder in (old, young):
        folder.mkdir()
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    publish(tmp_path, CONTENT, fill)
    assert not old.exists() and young.exists()


def test_the_manifest_names_every_file(tmp_path):
    # Catches files that could change without anyone noticing.
    publish(tmp_path, CONTENT, fill)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix]
    assert set(manifest["files"]) == {
        path.relative_to(tmp_path).as_posix() for path in files if path.name != "manifest.json"
    }

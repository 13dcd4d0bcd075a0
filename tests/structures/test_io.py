import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from fisherscope.errors import ParameterError, StoreError
from fisherscope.structures import load, save
from fisherscope.structures.manifest import _checksum
from structures.fishers import build, same_bits, scores
from structures.matrices import BLOCKWISE, make

OF = scores("abcdef", draws=2)
FISHER = build(OF, fisher_type="mc", halves=([0, 1, 2], [3, 4, 5]), skipped=("x",))
OTHER = build(scores("ghi", seed=4))


def listing(folder: Path) -> set[str]:
    """Everything below, hidden files too."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


@pytest.fixture
def saved(tmp_path):
    save(FISHER, tmp_path / "f", max_shard_size=64)
    return tmp_path / "f"


@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [40, 64, "5GB"])
def test_a_fisher_comes_back_bit_by_bit(tmp_path, structure, dtype, size):
    # Catches: lost order of parameters, halves, skipped ids or variances; rounding on disk.
    fisher = build(
        OF, structure=structure, dtype=dtype, fisher_type="mc",
        halves=([0, 1, 2], [3, 4, 5]), skipped=("x", "\ud800 y\n"),
    )  # fmt: skip
    save(fisher, tmp_path / "deep" / "er" / "f", max_shard_size=size)
    assert same_bits(load(tmp_path / "deep" / "er" / "f"), fisher)
    assert listing(tmp_path / "deep" / "er") == {
        f"f/{name}" if name else "f" for name in ("", *listing(tmp_path / "deep" / "er" / "f"))
    }


# Planted: fp16 in place of bf16 (small sums become 0), halves left as they are, bf16 sums handed
# out as such. Would catch: rounding of what is given rather than of what is written.
@pytest.mark.parametrize("structure", ["diagonal", "grouped"])
def test_sums_in_bf16_take_half_and_keep_their_range(tmp_path, structure):
    shapes = {"a.weight": (300, 40), "a.bias": (300,), "square.weight": (40, 40)}
    of = scores("abcd", shapes=shapes)
    fisher = build(of, structure=structure, halves=([0, 1], [2, 3]))
    small = build(of, structure=structure, halves=([0, 1], [2, 3]))
    for part in (small, *small.halves):
        for total in part.sums.values():
            total *= 1e-30
    for number, one in enumerate((fisher, small)):
        one.save(tmp_path / f"whole-{number}")
        one.save(tmp_path / f"half-{number}", dtype=torch.bfloat16)
        sizes = [
            sum(p.stat().st_size for p in (tmp_path / f"{name}-{number}").rglob("sums.safetensors"))
            for name in ("half", "whole")
        ]
        assert 0.5 <= sizes[0] / sizes[1] < (0.55 if structure == "diagonal" else 0.75)
        again = load(tmp_path / f"half-{number}")
        for mine, theirs in zip((again, *again.halves), (one, *one.halves), strict=True):
            for name, total in theirs.sums.items():
                assert mine.sums[name].dtype == torch.float32
                torch.testing.assert_close(mine.sums[name], total, rtol=2**-8, atol=0)
        again.save(tmp_path / f"again-{number}", dtype=torch.bfloat16)
        assert same_bits(load(tmp_path / f"again-{number}"), again)


# Would catch: factors that are rounded until they have negative eigenvalues; types of no range.
def test_what_does_not_bear_rounding_is_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"dtype=torch\.float16"):
        FISHER.save(tmp_path / "f", dtype=torch.float16)
    with pytest.raises(ParameterError, match="a kfac Fisher can't be saved"):
        make("kfac joint").save(tmp_path / "f", dtype=torch.bfloat16)
    assert not (tmp_path / "f").exists()


def test_the_method_saves_too_and_views_of_one_buffer_are_stored(tmp_path):
    # Catches: safetensors refusing transposed or shared storage.
    fisher = build(OF, fisher_type="mc")
    buffer = torch.cat([s.reshape(-1) for s in fisher.sums.values()])
    start = 0
    for name, s in fisher.sums.items():
        fisher.sums[name] = buffer[start : start + s.numel()].reshape(s.shape)
        start += s.numel()
    fisher.sums["square.weight"] = fisher.sums["square.weight"].T
    fisher.save(str(tmp_path / "f"))
    assert same_bits(load(tmp_path / "f"), fisher)


def test_an_empty_fisher_survives(tmp_path):
    # Catches: crashing on N = 0 when every example was skipped.
    empty = build(scores(()), skipped=("a",))
    save(empty, tmp_path / "f")
    assert same_bits(load(tmp_path / "f"), empty)


def test_files_are_safetensors_and_json_and_readable_by_others(saved):
    # Catches: pickled content, and a folder that only its writer may open.
    assert {p.suffix for p in saved.rglob("*") if p.is_file()} == {".json", ".safetensors"}
    assert len(list(saved.glob("sums-0000?-of-00002.safetensors"))) == 2
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o777 & ~mask
    index = json.loads((saved / "sums.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(FISHER.sums)


def files_of_a_fisher() -> list[str]:
    names = ["fisher.json", "ledger.json", "sums.safetensors.index.json"]
    names += ["sums-00001-of-00002.safetensors", "ledger.safetensors.index.json"]
    return [*names, "half-0/fisher.json", "half-1/sums-00002-of-00002.safetensors"]


@pytest.mark.parametrize("name", files_of_a_fisher())
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "swapped"])
def test_any_damage_to_any_file_is_found_and_named(saved, name, damage):
    # Catches: reading numbers that nobody estimated. Each single file, each kind of damage.
    path = saved / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        # Intact, but another Fisher's.
        save(build(scores("abcdef", seed=8, draws=2), fisher_type="mc",
                   halves=([0, 1, 2], [3, 4, 5])),
             saved.parent / "g", max_shard_size=64)  # fmt: skip
        shutil.copy(saved.parent / "g" / name, path)
        if name == "fisher.json" or (saved.parent / "g" / name).read_bytes() == content:
            # The manifest's own replacement shows in the files that it doesn't describe.
            name = "" if name == "fisher.json" else None
    if name is None:
        assert same_bits(load(saved), FISHER)
        return
    with pytest.raises(StoreError) as caught:
        load(saved)
    assert name in str(caught.value)
    assert str(saved) in str(caught.value)


def test_every_byte_of_the_manifest_counts(saved):
    # Catches: a changed digit in a count, which is still perfect JSON.
    manifest = saved / "fisher.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"n_units": 6', '"n_units": 7'))
    with pytest.raises(StoreError, match=r"fisher\.json was changed"):
        load(saved)


def rewrite(folder: Path, **changes) -> None:
    """A manifest with a valid checksum, as another program might write it."""
    body = {**json.loads((folder / "fisher.json").read_text()), **changes}
    del body["checksum"]
    body["checksum"] = _checksum(body)
    (folder / "fisher.json").write_text(json.dumps(body))


def test_another_version_or_format_is_refused(saved):
    # Catches: misreading a newer layout, or another tool's file.
    rewrite(saved, format_version=2)
    with pytest.raises(StoreError, match="format version 2.*reads 1"):
        load(saved)
    rewrite(saved, format_version=1, format="somebody's")
    with pytest.raises(StoreError, match="format"):
        load(saved)
    for text in ("[]", "3", "", "[" * 100_000, "\x80"):
        (saved / "fisher.json").write_text(text, encoding="latin-1")
        with pytest.raises(StoreError, match=r"fisher\.json"):
            load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"structure": "kfac"},
        {"identity": {}},
        {"identity": None},
        {"n_units": None, "coverage": None, "files": 3},
        {"files": {"ledger.json": {}}},
        {"structure": "grouped"},
    ],
)
def test_a_manifest_that_makes_no_sense_is_a_store_error(saved, changes):
    # Catches: a bare KeyError or TypeError from a foreign but well-formed manifest.
    rewrite(saved, **changes)
    with pytest.raises(StoreError, match=r"fisher\.json does not describe"):
        load(saved)


def test_missing_and_foreign_folders_say_what_to_do(tmp_path):
    # Catches: a FileNotFoundError without the fix.
    with pytest.raises(StoreError, match=r"does not exist.*estimate"):
        load(tmp_path / "none")
    with pytest.raises(StoreError, match=r"has no fisher\.json"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"has no fisher\.json"):
        load(tmp_path / "file")


def test_other_peoples_folders_are_never_overwritten(tmp_path, saved):
    # Catches: save() deleting a user's work.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (saved / "notes.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "ledger.json").write_text("my own ledger")
    refused = {
        "mine": "thesis.tex", "f": "notes.txt", "file": "is a file", "half": "no fisher.json",
    }  # fmt: skip
    for name, text in refused.items():
        before = listing(tmp_path)
        with pytest.raises(StoreError, match=text):
            save(OTHER, tmp_path / name)
        assert listing(tmp_path) == before
    (tmp_path / "empty").mkdir()
    save(OTHER, tmp_path / "empty")
    assert same_bits(load(tmp_path / "empty"), OTHER)


def test_an_unwritable_place_is_a_store_error(tmp_path):
    # Catches: a bare OSError. A file as parent fails for every user, also for root, whom
    # read-only permissions don't stop.
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"can't write .*file/f.*Check"):
        save(OTHER, tmp_path / "file" / "f")
    assert listing(tmp_path) == {"file"}


def test_saving_replaces_the_whole_folder(saved):
    # Catches: shards and halves of the old Fisher staying behind.
    save(OTHER, saved)
    assert same_bits(load(saved), OTHER)
    assert not list(saved.glob("half-*"))
    assert {p.name for p in saved.parent.iterdir()} == {"f"}


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_a_failed_rename_leaves_the_old_fisher_and_no_rubbish(saved, monkeypatch, calls, error):
    # Catches: removing the old folder too early. The first rename moves the old folder away,
    # the second moves the new one in; each fails once.
    real, count = os.replace, 0

    def replace(*args, **kwargs):
        nonlocal count
        count += 1
        if count == calls:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises((StoreError, KeyboardInterrupt)):
        save(OTHER, saved)
    assert count >= calls
    assert {p.name for p in saved.parent.iterdir()} == {"f"}
    assert same_bits(load(saved), FISHER)


def test_a_writer_killed_between_its_renames_loses_nothing(saved, monkeypatch):
    # Catches: no Fisher at all when a process dies at the worst moment: every rename after
    # the first fails, so nothing can be put back either.
    real, count = os.replace, 0

    def replace(*args, **kwargs):
        nonlocal count
        count += 1
        if count > 1:
            raise OSError("killed")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(StoreError, match="killed"):
            save(OTHER, saved)
    assert not saved.exists()
    assert same_bits(load(saved), FISHER)
    save(OTHER, saved)
    assert same_bits(load(saved), OTHER)
    assert {p.name for p in saved.parent.iterdir()} == {"f"}


def test_a_failure_while_writing_leaves_the_old_fisher(saved, monkeypatch):
    # Catches: writing into the folder in place. A full disk in the middle of the shards.
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fisherscope.structures.shards.save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        save(OTHER, saved)
    assert {p.name for p in saved.parent.iterdir()} == {"f"}
    assert same_bits(load(saved), FISHER)


def test_everything_is_flushed_before_the_rename(tmp_path, monkeypatch):
    # Catches: a rename that survives a power cut while the data doesn't.
    flushed, order = [], []
    real_sync, real_replace = os.fsync, os.replace

    def sync(handle):
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        real_sync(handle)

    def replace(*args, **kwargs):
        order.append(set(flushed))
        real_replace(*args, **kwargs)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to see which file a handle is")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    save(FISHER, tmp_path / "f")
    assert {p.name for p in (tmp_path / "f").rglob("*")} <= order[0]
    assert tmp_path.name in flushed


def test_a_link_is_followed(tmp_path, saved):
    # Catches: replacing the link by a folder and leaving the old data behind.
    (tmp_path / "link").symlink_to(saved)
    save(OTHER, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same_bits(load(saved), OTHER)


@pytest.mark.parametrize("case", BLOCKWISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_come_back_bit_by_bit(tmp_path, case, dtype):
    # Catches: a lost layout, factors under other names, a number of rows rounded to float32.
    one, two = make(case, dtype=dtype, ids="abc"), make(case, dtype=dtype, ids="de")
    fisher = dataclasses.replace(one + two, halves=(one, two))
    fisher.save(tmp_path / "f")
    again = load(tmp_path / "f")
    assert same_bits(again, fisher)
    assert again.layout == fisher.layout
    assert again.halves is not None and again.halves[1].layout == two.layout
    v = {n: torch.ones(s) for n, s in fisher.identity.parameters.items()}
    solved, expected = again.solve(v, damping=0.1), fisher.solve(v, damping=0.1)
    assert all(torch.equal(solved[n], t) for n, t in expected.items())


def test_layouts_that_do_not_fit_their_sums_are_not_loaded(tmp_path):
    # Catches: another program's layout read as ours.
    fisher = make("kfac joint")
    fisher.save(tmp_path / "f")
    body = json.loads((tmp_path / "f" / "fisher.json").read_text())
    assert body["format_version"] == 1
    for layout in ([], [{**body["layout"][0], "kind": "full"}], [{"names": ["linear"]}], 3):
        rewrite(tmp_path / "f", layout=layout)
        with pytest.raises(StoreError, match=r"fisher\.json"):
            load(tmp_path / "f")
    rewrite(tmp_path / "f", layout=body["layout"])
    assert same_bits(load(tmp_path / "f"), fisher)


def test_fishers_without_blocks_are_written_as_before(saved):
    # Catches: folders that an earlier version can't read for no reason.
    assert "layout" not in json.loads((saved / "fisher.json").read_text())
    assert load(saved).layout == ()

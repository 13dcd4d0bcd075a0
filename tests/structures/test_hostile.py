"""Folders made by somebody who means harm: each way by itself (``test_loaders.py`` draws more)."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest

from fisherscope.errors import StoreError
from fisherscope.structures import io, load, save
from fisherscope.structures.manifest import seal, signed
from structures.fishers import build, same_bits, scores

FISHER = build(scores("abc", draws=2), fisher_type="mc", skipped=("x",))


def reseal(folder: Path, **changes) -> None:
    """Checksums that fit whatever the files hold now: an attacker can compute them too."""
    content = json.loads((folder / "fisher.json").read_text())
    del content["checksum"]
    (folder / "fisher.json").unlink()
    seal(folder, "fisher.json", {**content, **changes})


@pytest.fixture
def saved(tmp_path) -> Path:
    save(FISHER, tmp_path / "f")
    return tmp_path / "f"


class Boom:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


# Would catch: a loader that falls back to pickle.
def test_a_pickle_in_place_of_a_shard_is_refused(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    (saved / "sums.safetensors").write_bytes(pickle.dumps(Boom()))
    reseal(saved)
    with pytest.raises(StoreError, match=r"sums\.safetensors"):
        load(saved)
    assert not Path("unpickled").exists()


# Would catch: memory asked for because a file says so. 2 GiB of header are announced in 24 bytes.
@pytest.mark.parametrize("length", [2**31, 2**63, 10**8 + 1, 100])
def test_a_huge_header_is_refused_before_anything_is_allocated(saved, length):
    (saved / "sums.safetensors").write_bytes(struct.pack("<Q", length) + b"{" + b" " * 15)
    reseal(saved)
    with pytest.raises(StoreError, match=r"sums\.safetensors"):
        load(saved)


# Would catch: Python's own dialect of JSON let through; numbers, depths and sizes that end in
# another error than ours, or in none.
@pytest.mark.parametrize("name", ["fisher.json", "ledger.json", "sums.safetensors.index.json"])
@pytest.mark.parametrize(
    "text", ["NaN", '{"ids": [Infinity]}', "9" * 5000, "[" * 10**5, '{"a":' * 10**5]
)
def test_json_that_is_none_is_refused(saved, name, text):
    if name == "fisher.json":
        (saved / name).write_text(text)
    else:
        (saved / name).write_text(text)
        reseal(saved)
    with pytest.raises(StoreError, match=name.replace(".", r"\.")):
        load(saved)


# Would catch: reading that waits for ever, or elsewhere than in the folder.
@pytest.mark.parametrize("name", ["ledger.json", "sums.safetensors"])
def test_what_is_no_file_or_elsewhere_is_refused(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    reseal(saved)  # which records files only
    with pytest.raises(StoreError, match="no file"):
        load(saved)
    reseal(saved, files={})
    content = json.loads((saved / "fisher.json").read_text())
    del content["checksum"]
    (saved / name).unlink()
    for outside in ("/dev/zero", "../../dev/zero"):
        body = {**content, "files": {outside: {"bytes": 0, "sha256": ""}}}
        (saved / "fisher.json").write_text(json.dumps(signed(body)))
        with pytest.raises(StoreError, match="outside of itself"):
            load(saved)


# Would catch: an older format that is refused although its successor is known, or read as if it
# were the newer one.
def test_an_older_format_is_migrated_step_by_step(saved, monkeypatch):
    reseal(saved, format_version=-1, skipped="x")
    with pytest.raises(StoreError, match="format version -1.*reads 1"):
        load(saved)
    monkeypatch.setitem(io.MIGRATIONS, -1, lambda old: {**old, "skipped": [old["skipped"]]})
    with pytest.raises(StoreError, match="format version -1"):
        load(saved)  # the way from 0 to 1 is not known
    monkeypatch.setitem(io.MIGRATIONS, 0, lambda old: {**old, "skipped": tuple(old["skipped"])})
    assert same_bits(load(saved), FISHER)

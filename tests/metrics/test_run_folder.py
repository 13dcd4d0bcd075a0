from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from fisherscope.errors import StoreError
from fisherscope.metrics.run_folder import (
    check_out,
    check_space,
    read_results,
    write_bytes,
    write_json,
    write_tables,
)


@contextlib.contextmanager
def small_disk(path: Path, options: str):
    """A real file system of its own; skipped where that needs rights we do not have."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting needs more rights")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_checking_leaves_no_trace(tmp_path):
    # Would catch a check that makes the folder, or forgets its probe file.
    check_out(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    # Would catch a NotADirectoryError in the middle of a run.
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StoreError, match=r"file.* is a file"):
            check_out(out)


def test_somebody_elses_folder_is_left_alone(tmp_path):
    # Would catch a run spread over a folder of other things.
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        check_out(tmp_path)


def test_a_read_only_disk_is_found_at_once(tmp_path):
    # Would catch a run that computes for hours and then cannot write.
    with small_disk(tmp_path / "disk", "ro") as disk, pytest.raises(StoreError, match="--out"):
        check_out(disk / "run")


def test_a_read_only_folder_is_found_at_once(tmp_path, monkeypatch):
    # The same where nothing can be mounted, and for root, whom permissions do not stop.
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(StoreError, match="cannot be written; choose another --out"):
        check_out(tmp_path / "run")


def test_too_little_space_says_how_much(tmp_path):
    # Would catch a space check that compares the wrong way round.
    check_space(tmp_path / "run", 1)
    with pytest.raises(StoreError, match=r"needs about 1000000000\.00 GB"):
        check_space(tmp_path / "run", 10**18)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    # Would catch writing in place, and temporary files left behind.
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        write_bytes(disk / "results.json", b"old")
        with pytest.raises(StoreError, match="disk is full"):
            write_bytes(disk / "results.json", b"x" * 200_000)
        assert (disk / "results.json").read_bytes() == b"old"
        assert os.listdir(disk) == ["results.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    # The same where nothing can be mounted.
    write_bytes(tmp_path / "results.json", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match=r"results\.json: the disk is full"):
        write_bytes(tmp_path / "results.json", b"new")
    assert (tmp_path / "results.json").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    # Would catch NaN in the JSON, which no browser reads.
    write_json(tmp_path / "results.json", {"format": 1, "a": float("nan"), "b": [1.5]})
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "format": 1,
        "a": None,
        "b": [1.5],
    }


def test_tables_come_back_even_if_empty(tmp_path):
    # Would catch a table that is left out because it has no rows.
    tables = {"full": pd.DataFrame({"a": [1, 2]}), "empty": pd.DataFrame({"a": []})}
    write_tables(tmp_path, tables)
    assert pd.read_parquet(tmp_path / "full.parquet")["a"].tolist() == [1, 2]
    assert len(pd.read_parquet(tmp_path / "empty.parquet")) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "does not exist; finish the run"), ("{", "is not JSON"), ("[]", "is not a result")],
)
def test_unusable_results_are_named(tmp_path, content, said):
    # Would catch a report drawn from something else.
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(StoreError, match=said):
        read_results(tmp_path)

import hashlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fisherscope.demo.corpora import (
    HELD_OUT_MODULES,
    HELD_OUT_TOPICS,
    ROWS_PER_TASK,
    TRAINING_MODULES,
    read_corpora,
)
from fisherscope.demo.passages import LONGEST, SHORTEST
from fisherscope.errors import DataError

# Gone in Python 3.12 or 3.13.
REMOVED = set(
    """
    asynchat asyncore distutils imp smtpd aifc audioop cgi cgitb chunk crypt imghdr lib2to3
    mailcap msilib nis nntplib ossaudiodev pipes sndhdr spwd sunau telnetlib uu xdrlib
    """.split()  # noqa: SIM905
)


@pytest.fixture(scope="module")
def elsewhere():
    """The corpora's digest and the modules that reading them imported, in another process."""
    # Bare packages in the place of the real ones, whose imports (torch) take seconds.
    code = (
        "import hashlib, sys, types\n"
        "for name, folder in zip(['fisherscope', 'fisherscope.demo'], sys.argv[1:]):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__path__ = [folder]\n"
        "from fisherscope.demo.corpora import read_corpora\n"
        "before = set(sys.modules)\n"
        "text = repr(read_corpora())\n"
        "print(hashlib.sha256(text.encode()).hexdigest(), *set(sys.modules) - before)"
    )
    demo = Path(inspect.getfile(read_corpora)).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo.parent), str(demo)],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    digest, *imported = done.stdout.split()
    return digest, imported


def test_the_corpora_are_the_same_in_every_process(corpora, elsewhere):
    # Catches an order that hangs on string hashing or on the file system's listing.
    assert elsewhere[0] == hashlib.sha256(repr(corpora).encode()).hexdigest()


def test_modules_are_not_imported(elsewhere):
    # Catches reading docstrings by import: modules of the library open windows and browsers.
    # Python keeps the location of its library in a module of its own.
    imported = {name for name in elsewhere[1] if not name.startswith("_sysconfigdata")}
    assert imported == {"pydoc_data", "pydoc_data.topics"}


def test_every_task_has_rows_of_its_shape(corpora):
    # Catches tasks that are too small to compare, and rows that no reader accepts.
    assert set(corpora.held_out) == {"code", "prose", "qa"}
    for name, rows in corpora.held_out.items():
        assert 0.75 * ROWS_PER_TASK <= len(rows) <= ROWS_PER_TASK
        fields = {"id", "prompt", "completion"} if name == "qa" else {"id", "text"}
        assert all(set(row) == fields for row in rows)
        if name != "qa":
            assert all(SHORTEST <= len(row["text"]) <= LONGEST for row in rows)


def test_ids_are_unique_over_all_tasks(corpora):
    # Catches topic and module of the same name (numbers:0): Fishers of two tasks could then
    # not be added.
    ids = [row["id"] for rows in corpora.held_out.values() for row in rows]
    assert len(set(ids)) == len(ids)
    assert {row["id"].split(":")[0] for row in corpora.held_out["code"]} > {"textwrap", "json"}


def test_held_out_rows_come_from_modules_and_topics_set_aside(corpora):
    # Catches a leak of training modules into the held-out rows, or the other way round.
    assert not set(TRAINING_MODULES) & set(HELD_OUT_MODULES)
    for name in ("code", "qa"):
        for row in corpora.held_out[name]:
            assert row["id"].split(":")[0].split(".")[0] in HELD_OUT_MODULES
    for row in corpora.held_out["prose"]:
        assert row["id"].startswith("topics.")
        assert row["id"].removeprefix("topics.").split(":")[0] in HELD_OUT_TOPICS
    assert all(row["id"].split(".")[0] in TRAINING_MODULES for row in corpora.lessons)


def test_held_out_text_does_not_stand_in_the_training_text(corpora):
    # Catches the help topics' quotations of each other and shared docstrings.
    for name in ("code", "prose"):
        seen = {line.strip() for text in corpora.documents[name] for line in text.split("\n")}
        lines = [line.strip() for row in corpora.held_out[name] for line in row["text"].split("\n")]
        long = [line for line in lines if len(line) > 50]
        assert len(long) > 500
        assert sum(line in seen for line in long) < 0.01 * len(long)
    taught = {row["completion"] for row in corpora.lessons}
    assert not taught & {row["completion"] for row in corpora.held_out["qa"]}


def test_no_module_fills_a_task_alone(corpora):
    # Catches rows taken from the first or the largest modules only.
    modules = [row["id"].split(":")[0].split(".")[0] for row in corpora.held_out["code"]]
    assert set(modules) == set(HELD_OUT_MODULES)
    assert max(modules.count(name) for name in set(modules)) < 0.1 * len(modules)


def test_the_modules_exist_in_every_supported_python():
    # Catches names that Python 3.12 or 3.13 dropped, misspellings and unwanted packages.
    named = set(TRAINING_MODULES) | set(HELD_OUT_MODULES)
    assert named <= sys.stdlib_module_names
    unwanted = {"test", "idlelib", "this", "antigravity", "turtledemo", "pydoc_data"}
    assert not named & (REMOVED | unwanted)


def test_a_python_without_sources_is_refused_with_the_fix(tmp_path):
    # Catches a demo that goes on with a handful of rows.
    with pytest.raises(DataError, match="python3-full"):
        read_corpora(tmp_path)


def test_a_python_without_help_topics_is_refused(monkeypatch):
    # Catches an ImportError out of the depth: some distributions leave the topics out.
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="'prose'"):
        read_corpora()


def test_a_few_missing_or_unreadable_files_do_no_harm(tmp_path, monkeypatch):
    # Catches a reader that stops at the first broken file. Test folders must stay out too.
    from fisherscope.demo import corpora

    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "package" / "tests").mkdir(parents=True)
    (tmp_path / "package" / "tests" / "test_it.py").write_text("x = 2\n")
    (tmp_path / "package" / "__init__.py").write_text("x = 3\n")
    (tmp_path / "package" / "part.py").write_bytes(b"x = 4\r\n")
    read = corpora._sources
    assert read(tmp_path, "good") == {"good": "x = 1\n"}
    assert read(tmp_path, "broken") == read(tmp_path, "empty") == read(tmp_path, "gone") == {}
    assert read(tmp_path, "package") == {"package": "x = 3\n", "package.part": "x = 4\n"}

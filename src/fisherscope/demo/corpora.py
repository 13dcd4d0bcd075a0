"""Three small tasks made from what every Python carries: its own standard library.

``code`` is source text, ``prose`` the language reference behind ``help("topics")``, and
``qa`` questions about library functions with their docstrings as answers. Sources are
only read and parsed, never imported or run. Whole modules (and whole help topics) are
set aside, so nothing about a held-out module is seen in training.
"""

from __future__ import annotations

import sysconfig
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fisherscope.demo.passages import evenly, pack, without_repeats
from fisherscope.demo.questions import questions
from fisherscope.errors import DataError

Row = dict[str, str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Names that Python 3.11, 3.12 and 3.13 all have. A list, not a listing of the folder, so
# that vendor additions, tests and modules of one version only never change the corpora.
TRAINING_MODULES = _words("""
    abc argparse ast asyncio base64 bdb bisect bz2 cProfile cmd code codecs codeop
    collections colorsys compileall concurrent contextlib copy copyreg ctypes curses
    dataclasses dbm dis doctest email enum filecmp fileinput ftplib functools genericpath
    getopt getpass gettext gzip hmac html http imaplib importlib inspect io ipaddress
    keyword linecache locale lzma mailbox mimetypes modulefinder multiprocessing netrc
    ntpath numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil
    platform poplib posixpath profile pstats pty py_compile pyclbr pydoc queue quopri re
    reprlib rlcompleter runpy secrets selectors shelve shutil site smtplib socket
    socketserver sqlite3 ssl stat string stringprep subprocess symtable sysconfig tabnanny
    tempfile threading timeit token tokenize tomllib trace traceback tracemalloc tty turtle
    types typing unittest urllib uuid warnings weakref webbrowser wsgiref xml xmlrpc zipapp
    zipfile zipimport
""")
HELD_OUT_MODULES = _words("""
    calendar configparser csv difflib fnmatch fractions glob graphlib hashlib heapq json
    logging plistlib pprint random sched shlex statistics tarfile textwrap wave zoneinfo
""")
HELD_OUT_TOPICS = _words("""
    assert atom-identifiers augassign binary bitwise booleans break comparisons conversions
    customization debugger dict del exceptions floating for formatstrings global
    id-classes if in integers lambda lists nonlocal numbers objects operator-summary pass
    power raise return sequence-types shifting slicings string-methods try truth types
    typesmapping unary while with
""")
SKIPPED_PARTS = frozenset({"test", "tests", "__pycache__", "site-packages", "lib2to3", "idlelib"})

ROWS_PER_TASK = 200
# No module fills the training text or the held-out rows alone.
CHARACTERS_PER_MODULE = 60_000
ROWS_PER_MODULE = 14


@dataclass(frozen=True)
class Corpora:
    """What the demo models read and are measured on.

    Attributes:
        documents: Task name (code, prose) to the training texts of the base model, one
            source file or help topic each.
        lessons: Training rows ``{"id", "prompt", "completion"}`` of the instruct model.
        held_out: Task name to held-out rows; ``{"id", "text"}`` for code and prose.
    """

    documents: dict[str, tuple[str, ...]]
    lessons: tuple[Row, ...]
    held_out: dict[str, tuple[Row, ...]]


def read_corpora(library: Path | None = None) -> Corpora:
    """Read the three tasks from the standard library of this Python.

    The same Python gives the same rows in the same order, whatever the platform's
    file listing.

    Args:
        library: Folder of the standard library's source files; ``None`` takes the one
            that this Python runs from.

    Returns:
        Training texts and held-out rows. Where too little source text or documentation is
        installed, a ``DataError`` says so.
    """
    library = Path(sysconfig.get_path("stdlib")) if library is None else library
    topics = _topics()
    prose = _enough("prose", _prose_rows(topics), library)
    held_out = {name: _sources(library, name) for name in HELD_OUT_MODULES}
    code = _enough("code", _code_rows(held_out), library)
    qa = _enough("qa", [row for files in held_out.values() for row in questions(files)], library)
    training = {name: _sources(library, name) for name in TRAINING_MODULES}
    # Some classes share a docstring with one of another module.
    answers = {row["completion"] for row in qa}
    lessons = [row for files in training.values() for row in questions(files)]
    lessons = [row for row in lessons if row["completion"] not in answers]
    sources = [text for files in training.values() for text in _capped(files.values())]
    articles = [text for name, text in topics.items() if name not in HELD_OUT_TOPICS]
    return Corpora(
        documents={"code": tuple(sources), "prose": tuple(articles)},
        lessons=tuple(_enough("training", lessons, library)),
        held_out={
            "code": tuple(evenly(code, ROWS_PER_TASK)),
            "prose": tuple(evenly(prose, ROWS_PER_TASK)),
            "qa": tuple(evenly(qa, ROWS_PER_TASK)),
        },
    )


def _enough(what: str, rows: list[Row], library: Path) -> list[Row]:
    if len(rows) >= ROWS_PER_TASK // 2:
        return rows
    raise DataError(
        f"the demo found only {len(rows)} rows for {what!r}: this Python ships without most of "
        f"its library's source files or help topics (looked in {library}). Install them (Debian "
        "and Ubuntu: python3-full) or run the demo with another Python."
    )


def _sources(library: Path, name: str) -> dict[str, str]:
    # Dotted names, sorted; what is missing or unreadable is left out.
    single, package = library / f"{name}.py", library / name
    paths = [single] if single.is_file() else sorted(package.rglob("*.py"))
    texts: dict[str, str] = {}
    for path in paths:
        parts = path.relative_to(library).with_suffix("").parts
        if SKIPPED_PARTS.intersection(parts):
            continue
        try:
            # Honours the file's own coding line; newlines become "\n" on every platform.
            with tokenize.open(path) as file:
                text = file.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue
        dotted = ".".join(parts).removesuffix(".__init__")
        if text.strip():
            texts[dotted] = text
    return dict(sorted(texts.items()))


def _topics() -> dict[str, str]:
    # Many topics repeat sections of others, which would carry held-out text into training.
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    # The shortest first: a short topic is mostly the one that the longer one quotes.
    order = sorted(topics, key=lambda name: (len(topics[name]), name))
    texts = dict(zip(order, without_repeats(topics[name] for name in order), strict=True))
    return {name: texts[name] for name in sorted(texts) if texts[name]}


def _code_rows(modules: dict[str, dict[str, str]]) -> list[Row]:
    rows = []
    for files in modules.values():
        own = [
            {"id": f"{dotted}:{index}", "text": chunk}
            for dotted, text in files.items()
            for index, chunk in enumerate(pack(text.split("\n"), "\n"))
        ]
        rows += evenly(own, ROWS_PER_MODULE)
    return rows


def _prose_rows(topics: dict[str, str]) -> list[Row]:
    # The prefix keeps ids apart from those of modules with the same name (numbers:0).
    return [
        {"id": f"topics.{name}:{index}", "text": chunk}
        for name, text in topics.items()
        if name in HELD_OUT_TOPICS
        for index, chunk in enumerate(pack(text.split("\n\n"), "\n\n"))
    ]


def _capped(texts: Iterable[str]) -> list[str]:
    left, kept = CHARACTERS_PER_MODULE, []
    for text in texts:
        if left <= 0:
            break
        kept.append(text[:left])
        left -= len(text)
    return kept

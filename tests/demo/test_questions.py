import textwrap

import pytest

from fisherscope.demo.questions import first_sentences, questions


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        # Catches splitting at every full stop (e.g. inside a version number or a name).
        ("Read version 3.11 of os.PathLike.", "Read version 3.11 of os.PathLike."),
        # Catches a first sentence that is taken alone though it says next to nothing.
        ("Make a set of it. The set is new.", "Make a set of it. The set is new."),
        # Catches line breaks of the source in the answer.
        ("Return a new list\nwith the items.", "Return a new list with the items."),
        # Catches running over into the second paragraph.
        ("Return the number of items.\n\nRaises an error.", "Return the number of items."),
        # Catches answers without an end, signatures taken for answers, and empty docstrings.
        ("Return the number of", ""),
        ("dedent(text) -> str. It removes the margin.", ""),
        ("Short.", ""),
        ("", ""),
    ],
)
def test_first_sentences(docstring, expected):
    assert first_sentences(docstring) == expected


def test_an_answer_ends_before_it_grows_too_long():
    # Catches answers cut in mid-sentence.
    docstring = "This one is short and begins. " + "Word " * 60 + "end."
    assert first_sentences(docstring) == "This one is short and begins."


SOURCE = textwrap.dedent(
    '''
    class Public:
        """A class that everybody is welcome to use."""

        def method(self, first, second):
            """Do something with both of the arguments."""

        def _hidden(self):
            """This one nobody is supposed to hear of."""

    def _private():
        """This one nobody is supposed to hear of."""

    def bare():
        pass

    try:
        async def inside():
            """Defined inside of a block but public anyway."""
    except ImportError:
        pass

    def copy():
        """A class that everybody is welcome to use."""
    '''
)


def test_public_documented_names_become_rows():
    # Catches private names, missing docstrings, `self` in the call, repeated answers, and
    # names without their module.
    rows = {row["id"]: row for row in questions({"pack.mod": SOURCE})}
    assert list(rows) == ["pack.mod.Public", "pack.mod.Public.method", "pack.mod.inside"]
    row = rows["pack.mod.Public.method"]
    assert row["completion"] == " Do something with both of the arguments."
    assert row["prompt"].startswith("Question: ") and row["prompt"].endswith("\nAnswer:")
    assert "pack.mod.Public.method" in row["prompt"] and "self" not in row["prompt"]


def test_unparsable_and_private_modules_are_left_out():
    # Catches one broken file of the library taking the whole demo with it.
    assert questions({"broken": "def f(:", "null": "\0", "pack._mod": SOURCE}) == []


def test_classes_and_functions_are_asked_about_in_several_ways():
    # Catches a choice of template that always falls on the same one, and "What does C do?"
    # about a class.
    classes = [
        f'class C{i}:\n    """The thing with the number {i}, a class."""\n' for i in range(30)
    ]
    functions = [
        f'def f{i}(x):\n    """Return the thing with the number {i}."""\n' for i in range(30)
    ]
    rows = questions({"m": "".join(classes + functions)})
    assert len(rows) == 60
    for kind, least in (("C", 3), ("f", 4)):
        asked = [row for row in rows if row["id"].startswith(f"m.{kind}")]
        assert len({row["prompt"].replace(row["id"], "NAME") for row in asked}) >= least
        if kind == "C":
            assert not any("do?" in row["prompt"] or "call" in row["prompt"] for row in asked)

"""Selectors: layer ranges, and the forms in text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fisherscope.errors import ParameterError
from fisherscope.naming import Layers, described, layers, selectors, to_text

BOUND = st.none() | st.integers(-9, 9)


# Would catch: an end that is included, negative numbers counted from 0, an open side taken for 0.
@given(start=BOUND, stop=BOUND, count=st.integers(1, 8))
def test_a_range_is_a_slice(start, stop, count):
    try:
        spec = layers(start, stop)
    except ParameterError:
        assert not any(list(range(n))[start:stop] for n in range(1, 40))
        return
    held = [layer for layer in range(count) if spec.holds(layer, count)]
    assert held == list(range(count))[start:stop]


# Would catch: "layers[-1]" read as layers[-1:0], which is empty; a form that is written but not
# read; blanks taken for a glob.
@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("layers[3:7]", Layers(3, 7)),
        ("layers[3]", Layers(3, 4)),
        ("layers[-1]", Layers(-1, None)),
        ("layers[-2]", Layers(-2, -1)),
        ("layers[-2:]", Layers(-2)),
        ("layers[:2]", Layers(stop=2)),
        ("layers[:]", Layers()),
        ("layers[ 0 : -1 ]", Layers(0, -1)),
    ],
)
def test_ranges_in_text(text, spec):
    assert selectors(text) == [spec]
    assert selectors(str(spec)) == [spec] == selectors(to_text(spec))


# Would catch: any name that begins alike taken for a range.
@pytest.mark.parametrize(
    "text", ["layers[]", "layers[3].weight", "layers[a]", "layers.3.*", "*layers[3:7]", "r:x"]
)
def test_everything_else_is_a_glob(text):
    assert selectors(text) == [text] and to_text(text) == text


# Would catch: flags that get lost on the way into a config file, or are written twice.
@pytest.mark.parametrize(
    "pattern",
    [
        re.compile(r"mlp|attn\.(q|k)_proj"),
        re.compile("MLP", re.IGNORECASE),
        re.compile("(?i)MLP"),
        re.compile("(?i)m l p", re.VERBOSE | re.ASCII),
        re.compile("^mlp # what follows\n$", re.VERBOSE | re.MULTILINE | re.DOTALL),
        re.compile(r"(?m)^m", re.IGNORECASE),
    ],
)
def test_expressions_survive_their_text(pattern):
    (text,) = [to_text(pattern)]
    (again,) = selectors(text)
    assert isinstance(text, str) and isinstance(again, re.Pattern)
    assert again.flags == pattern.flags
    assert again.pattern.endswith(pattern.pattern)
    assert to_text(text) == text


def test_several_are_read_and_written_one_by_one():
    mixed = ("*.mlp.*", re.compile("norm"), layers(1, 3))
    assert to_text(mixed) == ["*.mlp.*", "re:norm", "layers[1:3]"]
    assert selectors(to_text(mixed)) == list(mixed)
    assert to_text(None) is None


# Would catch: a config file with "<function …>" in it, which replays as a glob that is in no name.
def test_a_predicate_cannot_be_written():
    def heavy(name, parameter):
        return parameter.numel() > 10

    assert selectors(["*", heavy])[1] is heavy
    for selection in (heavy, ["*", heavy]):
        with pytest.raises(ParameterError, match=r"predicate .*heavy cannot be written.*re:…"):
            to_text(selection)
    assert "heavy" in described(heavy) and described(layers(1)) == "'layers[1:]'"


# Would catch: a broken selection found out by a TypeError from deep inside, or not at all.
@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ([], "selects nothing"),
        (3, "selected by 3"),
        (["*", 3], "selected by 3"),
        (range(3, 7), r"layers\(3, 7\)"),
        ({"*": 1}, "selected by"),
        (re.compile(b"mlp"), "of str"),
        (dict, "selected by"),
        ("re:mlp(", r"'re:mlp\(' is not a regular expression: missing \)"),
    ],
)
def test_unusable_selections_are_named(selection, said):
    with pytest.raises(ParameterError, match=said):
        selectors(selection)


@pytest.mark.parametrize(
    ("start", "stop", "said"),
    [
        (3, 3, r"layers\[3:3\] holds no layer"),
        (7, 3, "holds no layer"),
        (-1, -2, "holds no layer"),
        (None, 0, "holds no layer"),
        (1.0, None, "1.0 is not a layer number"),
        (0, True, "True is not a layer number"),
        ("3", None, "'3' is not a layer number"),
    ],
)
def test_unusable_ranges_are_refused(start, stop, said):
    with pytest.raises(ParameterError, match=said):
        layers(start, stop)

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherscope.report import text

FINITE = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-12)


@pytest.mark.parametrize("value", [None, True, "3", math.nan, math.inf, [1]])
def test_what_is_no_number_is_missing(value):
    # Catches NaN or a boolean being printed and drawn as a value.
    assert text.number(value) is None
    assert text.number(3) == 3.0


@settings(deadline=None)
@given(FINITE)
def test_table_numbers_read_back(value):
    # Catches lost digits and exponents: what a table shows is the value to four digits.
    shown = float(text.significant(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=6e-4)


def test_rounding_up_to_a_power_of_ten_keeps_the_digits():
    # Catches the exponent being taken before rounding (9.9996 would become 10.000).
    assert text.significant(9.99996) == "10.00"
    assert text.significant(0.000099999) == "1.000e-4"
    assert text.significant(0.012345) == "0.01235"
    assert text.significant(None) == "–"
    assert text.significant(0) == "0"


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-8, 1e4), st.sampled_from([-1, 1]))
def test_value_and_error_are_rounded_at_the_same_place(value, error, sign):
    # Catches digits of the value beyond its error, and mismatched decimals or powers.
    shown = text.plus_minus(sign * value, error).replace("\u2212", "-").replace(",", "")
    if shown.startswith("("):
        inside, _, exponent = shown[1:].partition(")·10")
        scale = 10.0 ** int(exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    else:
        inside, scale = shown, 1.0
    left, right = inside.split(" ± ")
    decimals = [len(part.partition(".")[2]) for part in (left, right)]
    assert decimals[0] == decimals[1]
    unit = scale * 10.0 ** -decimals[0]
    assert float(left) * scale == pytest.approx(sign * value, abs=0.51 * unit)
    assert float(right) * scale == pytest.approx(error, abs=0.51 * unit)
    if decimals[0] > 0:
        assert error / unit < 31


def test_plus_minus_examples():
    # Catches a change of the convention that every tile and caption follows.
    assert text.plus_minus(0.4123, 0.0131) == "0.412 ± 0.013"
    assert text.plus_minus(-6.0987, 0.0412) == "\u22126.10 ± 0.04"
    assert text.plus_minus(1.234e-5, 4.1e-7) == "(1.23 ± 0.04)·10⁻⁵"
    assert text.plus_minus(2.0, None) == "2.00"
    assert text.plus_minus(None, 1.0) == "–"
    assert text.plus_minus(6.0987, 0.0212, coarsest=0.05) == "6.10 ± 0.02"


def test_percentages():
    # Catches fractions shown as percentages without the factor, or 0.00% for what is not zero.
    assert text.percent(0.4123) == "41.2%"
    assert text.percent(0.4123, 0.0131) == "41.2% ± 1.3%"
    assert text.percent(0.00412) == "0.41%"
    assert text.percent(0.00002) == "<0.01%"
    assert text.percent(0.0) == "0.00%"


def test_standard_error_of_an_interval():
    # Catches the half-width of a 95% interval being shown after a ±.
    assert text.error_of(1 - 1.96 * 0.3, 1 + 1.96 * 0.3) == pytest.approx(0.3)
    assert text.error_of(None, 1.0) is None


def test_counts_sizes_durations():
    # Catches a wrong unit at its boundary.
    assert text.count(842) == "842"
    assert text.count(124_300_000) == "124 million"
    assert text.count(7_241_000_000) == "7.24 billion"
    assert text.size(2_345_678_901) == "2.18 GiB"
    assert text.duration(4.24) == "4.2 s"
    assert text.duration(59.99) == "60 s"
    assert text.duration(187) == "3 min 07 s"
    assert text.duration(7500) == "2 h 05 min"
    assert text.plural(1, "cell") == "1 cell"
    assert text.plural(0, "cell") == "0 cells"


@settings(deadline=None)
@given(st.lists(st.text(min_size=0, max_size=60), min_size=1, max_size=12, unique=True))
def test_short_labels_fit_and_stay_different(names):
    # Catches two long task names that share both ends becoming one label.
    names = list(dict.fromkeys(text.clean(names)))
    labels = text.shorten(names, 12)
    assert all(text.width(label) <= 12 for label in labels)
    assert len(set(labels)) == len(names)


def test_labels_that_agree_at_both_ends_are_numbered():
    # Catches two tasks with one label, which no reader could tell apart.
    names = [f"a long beginning {i} and a long end" for i in range(12)]
    labels = text.shorten(names, 12)
    assert len(set(labels)) == 12 and all(text.width(label) <= 12 for label in labels)
    assert labels[0].endswith("#1") and labels[11].endswith("#12")


def test_short_labels_keep_both_ends():
    # Catches labels cut at the end, where numbered tasks differ.
    name = "a very long task name 1"
    (label,) = text.shorten([name], 12)
    assert label.startswith("a v") and label.endswith("e 1") and "…" in label


def test_names_in_sentences():
    # Catches a name with spaces or markup or one letter melting into the sentence around it.
    assert text.spoken("math") == "math"
    assert text.spoken("held-out_2") == "held-out_2"
    assert text.spoken("a b") == "“a b”"
    assert text.spoken("a") == "“a”"
    assert text.width(text.spoken("x" * 300)) <= 42


def test_harmful_characters_are_replaced_at_every_depth():
    # Catches terminal escapes, reordering marks and lone surrogates reaching a page or terminal.
    dirty = {"a\x1b[31m": ["x\u202ey", {"k": "\ud800"}], "n": 3}
    clean = text.clean(dirty)
    assert clean == {"a\ufffd[31m": ["x\ufffdy", {"k": "\ufffd"}], "n": 3}
    assert text.clean("two\nlines\u2028three") == "two lines three"
    assert text.clean("naïve 数学 👩\u200d🔬") == "naïve 数学 👩\u200d🔬"

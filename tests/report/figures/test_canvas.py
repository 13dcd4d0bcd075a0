import re
import warnings
from xml.etree import ElementTree

import matplotlib
import pytest

from fisherscope.report.figures import canvas, palette

NASTY = '$x_1$ & <b id="p1">#0072b2 url(#p1)</b>'


def _draw(name="demo", text=NASTY, hover=None, boxes=3):
    with canvas.style(name):
        figure = canvas.new_figure(60, 200)
        sheet = canvas.add_sheet(figure)
        places = [(10.0 * i, 10.0, 8.0, 8.0) for i in range(boxes)]
        canvas.rectangles(sheet, places, palette.INK, gid="boxes")
        canvas.rectangles(sheet, places, "none", hatch="///", edgecolors=palette.ON_DARK)
        axes = canvas.add_axes(figure, (100, 10, 90, 40))
        axes.plot([0, 1], [0, 1], color=palette.series(["a"])["a"].color)
        axes.scatter([0.5], [0.5], gid="point")
        canvas.write(sheet, 5, 40, text)
        return str(canvas.to_svg(figure, name=name, label=text, hover=hover))


def test_same_input_same_bytes():
    # Catches dates and random identifiers.
    assert _draw() == _draw()


def test_svg_is_self_contained():
    # Catches metadata, namespaces and a style rule that would apply to the whole page.
    svg = _draw()
    assert "http" not in svg and "<style" not in svg and "xmlns" not in svg
    assert "metadata" not in svg and "<image" not in svg


def test_text_stays_text_and_literal():
    # Catches glyph outlines, formulas, and names rewritten as if they were colours or references.
    root = ElementTree.fromstring(_draw())
    assert NASTY in ["".join(element.itertext()) for element in root.iter("text")]
    assert root.get("aria-label") == NASTY and root.get("role") == "img"


def test_colours_follow_the_page():
    # Catches marker colours left in the SVG, which would be black on a dark page.
    svg = re.sub(r"<text.*?</text>", "", _draw(text="x"), flags=re.DOTALL)
    assert "var(--ink" in svg and "var(--s0" in svg
    assert not any(marker in svg for marker in palette.replacements() if marker != "#0072b2")


def test_identifiers_do_not_collide_in_a_page():
    # Catches two figures whose clip paths or hatches have the same identifier.
    first, second = (set(re.findall(r'\bid="([^"]+)"', _draw(n, "x"))) for n in ("one", "two"))
    assert first and not first & second
    used = set(re.findall(r"url\(#([^)]+)\)", _draw("one", "x")))
    assert used and used <= first


def test_tooltips_sit_on_their_marks():
    # Catches tooltips shifted by one, or on marks of another group.
    root = ElementTree.fromstring(_draw(hover={"boxes": ["a", "b", "c"], "point": ["dot"]}))
    found = {e.find("title").text: e for e in root.iter() if e.find("title") is not None}
    starts = [float(re.match(r"M([\d.]+)", found[k].get("d"))[1]) for k in "abc"]
    assert starts == sorted(starts) and starts[0] < 5
    assert found["dot"].tag == "use"


def test_too_few_tooltips_are_refused():
    # Catches a silent mismatch of marks and tooltips.
    with pytest.raises(ValueError, match="boxes: 3 marks but 2 tooltips"):
        _draw(hover={"boxes": ["a", "b"]})


def test_users_settings_neither_matter_nor_change():
    # Catches reports that depend on a user's matplotlibrc, and rendering that edits it.
    expected = _draw()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert _draw() == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_unknown_glyphs_raise_no_warning():
    # Catches a warning for every task name that matplotlib's own font cannot draw.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "数学" in _draw(text="数学")


def test_places_are_pixels_from_the_top_left():
    # Catches an upside-down sheet.
    root = ElementTree.fromstring(_draw(text="here"))
    (text,) = (e for e in root.iter("text") if "here" in "".join(e.itertext()))
    where = re.search(r"translate\(([\d.]+) ([\d.]+)\)", text.get("transform") or "")
    x, y = (float(v) for v in (where.groups() if where else (text.get("x"), text.get("y"))))
    assert x == pytest.approx(5, abs=0.5) and 40 <= y < 48
    assert root.get("viewBox") == "0 0 200 60"

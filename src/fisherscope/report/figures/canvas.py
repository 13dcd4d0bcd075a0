"""Matplotlib to inline SVG: deterministic, text as text, colours as CSS variables."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from fisherscope.report import text
from fisherscope.report.figures.palette import GRID, INK, MUTED, replacements

# What a section of the page leaves free, so that one unit is one pixel on a wide screen.
WIDTH = 1098
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 12,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "hatch.linewidth": 0.9,
}
Box = tuple[float, float, float, float]


@contextmanager
def style(name: str) -> Generator[None, None, None]:
    """Matplotlib's own defaults plus the report's, whatever the caller has set.

    Args:
        name: Name of the figure; it salts the identifiers in the SVG.

    Yields:
        Nothing; settings are restored afterwards.
    """
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        settings: Any = {**defaults, **_SETTINGS, "svg.hashsalt": name}
        matplotlib.rcParams.update(settings)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A see-through figure measured in CSS pixels.

    Args:
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        An empty figure, not registered with pyplot.
    """
    return Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")


def add_axes(figure: Figure, box: Box) -> Axes:
    """Axes at a place given in pixels from the top left.

    Args:
        figure: The figure.
        box: Left, top, width, height.

    Returns:
        The axes.
    """
    left, top, width, height = box
    full_width, full_height = figure.get_size_inches() * 72
    bottom = 1 - (top + height) / full_height
    return figure.add_axes((left / full_width, bottom, width / full_width, height / full_height))


def add_sheet(figure: Figure) -> Axes:
    """Invisible axes over the whole figure whose data units are pixels from the top left.

    Args:
        figure: The figure.

    Returns:
        The axes.
    """
    width, height = figure.get_size_inches() * 72
    sheet = add_axes(figure, (0, 0, width, height))
    sheet.set_axis_off()
    sheet.set_xlim(0, width)
    sheet.set_ylim(height, 0)
    return sheet


def rectangles(
    axes: Axes, boxes: Sequence[Box], colors: Any, *, gid: str | None = None, **options: Any
) -> None:
    """Draw filled boxes.

    Args:
        axes: Where to draw, in data units.
        boxes: Left, top, width, height of each.
        colors: One fill, or one per box.
        gid: Identifier to attach hover texts to.
        **options: Passed to the collection, such as ``hatch``, ``edgecolors``, ``linewidths``.
    """
    if not boxes:
        return
    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
    look = {"linewidths": 0, **options}
    # Unclipped, because a clip path on each of thousands of cells doubles the page.
    axes.add_collection(
        PolyCollection(corners, facecolors=colors, gid=gid, clip_on=False, **look), autolim=False
    )


def write(axes: Axes, x: float, y: float, line: str, **options: Any) -> None:
    """Write text literally: a dollar sign never starts a formula.

    Args:
        axes: Where to write, in data units.
        x: Horizontal position.
        y: Vertical position.
        line: The text, one line.
        **options: Passed to matplotlib, such as ``ha``, ``va``, ``size``, ``color``, ``rotation``.
    """
    # Anchored rotation is the only kind that the SVG writer aligns without knowing the font.
    look = {"ha": "left", "va": "center", "color": INK, "rotation_mode": "anchor", **options}
    axes.text(x, y, line, parse_math=False, clip_on=False, **look)


@cache
def extent(label: str, size: float) -> float:
    """Room that a text takes, whatever sans-serif font the browser has.

    Args:
        label: One line.
        size: Font size.

    Returns:
        Pixels, by the metrics of DejaVu Sans, which is wider than the fonts of the page.
    """
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    font.set_size(size, 72)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        font.set_text(label, 0.0)
    measured = font.get_width_height()[0] / 64
    # A glyph that this font lacks measures as a narrow box, but is often a full square.
    return max(measured, 0.52 * size * text.width(label))


def fit(names: Sequence[str], pixels: float, size: float) -> list[str]:
    """Labels shortened just as far as needed.

    Args:
        names: Full names.
        pixels: Room for each.
        size: Font size.

    Returns:
        One label per name, all different.
    """
    for columns in range(max(map(text.width, names), default=6), 6, -1):
        labels = text.shorten(names, columns)
        if all(extent(label, size) <= pixels for label in labels):
            return labels
    return text.shorten(names, 6)


def to_svg(
    figure: Figure, *, name: str, label: str, hover: Mapping[str, Sequence[str]] | None = None
) -> Markup:
    """The figure as an SVG element to put into the page.

    Args:
        figure: A finished figure, drawn and saved under :func:`style`.
        name: Prefix of all identifiers, unique in the page.
        label: Text alternative for screen readers.
        hover: For each gid, one tooltip per drawn mark, in drawing order.

    Returns:
        Markup without namespaces, metadata, dates or external references.

    Raises:
        ValueError: If a gid has not as many marks as tooltips.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The browser chooses the font, so a glyph that matplotlib's lacks is no defect.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    for gid, tooltips in (hover or {}).items():
        marks = list(_marks(root, gid))
        if len(marks) != len(tooltips):
            raise ValueError(f"{gid}: {len(marks)} marks but {len(tooltips)} tooltips")
        for mark, tooltip in zip(marks, tooltips, strict=True):
            ElementTree.SubElement(mark, "title").text = tooltip
    _rename(root, name)
    _recolor(root)
    width, height = (round(float(v)) for v in figure.get_size_inches() * 72)
    view_box = f"0 0 {width} {height}"
    root.attrib = {"viewBox": view_box, "width": str(width), "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _strip(root: ElementTree.Element) -> None:
    """Drop namespaces, metadata and matplotlib's page-wide style rule."""
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.rpartition("}")[2] in {"metadata", "style"}:
                element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
        if element.tag != "text" and element.text is not None and not element.text.strip():
            element.text = None
        element.tail = "\n" if element.tag == "g" else None


def _marks(root: ElementTree.Element, gid: str) -> Iterator[ElementTree.Element]:
    # Definitions are not marks.
    for group in root.iter("g"):
        if group.get("id") == gid:
            hidden = {id(e) for d in group.iter("defs") for e in d.iter()}
            for element in group.iter():
                if element.tag in {"path", "use"} and id(element) not in hidden:
                    yield element


def _rename(root: ElementTree.Element, name: str) -> None:
    """Keep only identifiers that are referred to, made unique in the page."""
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif key == "id":
                if element.tag == "g":
                    del element.attrib["id"]
                else:
                    element.set(key, f"{name}-{value}")
            elif key in {"d", "x", "y"}:
                short = re.sub(r"-?\d+\.\d+(?!e)", _two_decimals, value)
                element.set(key, re.sub(r"\s*([A-Za-z])\s*", r"\1", short))
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))


def _two_decimals(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _recolor(root: ElementTree.Element) -> None:
    """Marker colours become CSS variables; only attributes are touched, never text."""
    values = replacements()
    pattern = re.compile("|".join(values))
    for element in root.iter():
        for key in {"style", "fill", "stroke"} & element.attrib.keys():
            element.set(key, pattern.sub(lambda m: values[m[0]], element.attrib[key]))

"""Results to draw, figures as matplotlib made them, and a reader for the page."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from fisherscope.report.figures import canvas
from report.factory import make_results

VOID = {"meta", "br", "img", "input", "link", "base"}


class Page(HTMLParser):
    """Elements with their attributes, and whether every one that opens also closes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def _made():
    return make_results(4, 6)


@pytest.fixture
def results(_made):
    return copy.deepcopy(_made)


@pytest.fixture
def drawn(monkeypatch):
    """Draw data and get (matplotlib figure, parsed SVG) of every view."""

    def draw(data):
        kept = []
        real = canvas.to_svg

        def keep(figure, **options):
            kept.append(figure)
            return real(figure, **options)

        monkeypatch.setattr(canvas, "to_svg", keep)
        views = data.views()
        return [
            (figure, ElementTree.fromstring(str(view.svg)))
            for figure, view in zip(kept, views, strict=True)
        ]

    return draw


@pytest.fixture
def read_page():
    return Page


def svg_texts(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter("text")]


@pytest.fixture
def texts():
    return svg_texts


def without_numbers(value):
    """The same results with every value missing that can be."""
    names = {"format", "name", "task_a", "task_b", "metric", "on", "by", "module", "tensor",
             "layer", "level"}  # fmt: skip
    if isinstance(value, dict):
        return {k: v if k in names else without_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_numbers(v) for v in value]
    return None


@pytest.fixture
def blank():
    return without_numbers

"""The three figures of the brittleness page."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fisherscope.report.figures import STUDIES, breaking, ratios, sharpness
from fisherscope.report.page import render
from fisherscope.results import plain
from fisherscope.studies.brittleness import brittleness

NAMES = ("base", "<i>tuned")


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def classes(seed, shift):
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, shift : shift + 3]).argmax(1)


@pytest.fixture(scope="module")
def made():
    found = brittleness(
        {name: network(i) for i, name in enumerate(NAMES)},
        classes(1, 1),
        {"code": classes(2, 0), "<b>": classes(3, 0)},
        rates=(0.03,),
        steps=4,
        seeds=(1, 2, 3),
        looks=1,
        progress=False,
    )
    return plain({
        "format": 1,
        "kind": "brittleness",
        "title": "Brittleness",
        "findings": found.findings(),
        "models": {name: {} for name in NAMES},
        "tasks": {"code": {"n_examples": 24}, "<b>": {"n_examples": 24}},
        "settings": {},
        "study": found.to_dict(),
    })


@pytest.fixture
def content(made):
    return copy.deepcopy(made)


def row(content, **wanted):
    rows = content["study"]["ratios"]
    return next(r for r in rows if all(r[k] == v for k, v in wanted.items()))


def ratio(content, **changes):
    row(content, task="all", criterion="progress").update(changes)
    return content


def test_every_mark_is_drawn_and_names_are_escaped(content, drawn):
    # Catches curves of the other arm, and seeds of one model under another's name.
    data = breaking.build(content)
    assert data.models == NAMES and data.tasks == ("code", "<b>")
    assert len(data.seeds) == 2 * 2 * 3 and len(data.rows) == 2 * 3 * 3
    ((figure, _),) = drawn(data)
    panel = figure.axes[1]
    thin = [
        line for line in panel.lines if line.get_linewidth() == 0.8 and len(line.get_xdata()) > 2
    ]
    thick = [line for line in panel.lines if line.get_linewidth() == 2.4]
    assert len(thin) == 6 and len(thick) == 2
    curve = [r for r in data.rows if (r["model"], r["task"]) == ("base", "code")]
    assert thick[0].get_ydata().tolist() == [r["damage"] for r in curve]
    assert thin[0].get_ydata()[0] == 0
    assert "<i>tuned" not in data.views()[0].svg


def test_the_caption_says_what_was_found(content):
    sure = {"ratio": 2.5, "ratio_low": 1.5, "ratio_high": 4.0}
    found = breaking.build(ratio(content, outcome="more_brittle", **sure)).caption()
    assert "2.50 times as much [1.50, 4.00]" in found
    found = breaking.build(ratio(content, outcome="not_resolved", **sure)).caption()
    assert "times" not in found and "not told apart from 1" in found
    found = breaking.build(ratio(content, outcome="no_damage", ratio=None)).caption()
    assert "the latter is not resolved above zero" in found
    assert (
        "No two models" in breaking.build(ratio(content, outcome="diverged", damage=None)).caption()
    )


def test_every_ratio_has_a_bar_and_the_null_is_at_one(content, drawn):
    # Catches a bar without its interval, and ratios that are missing drawn at zero.
    for number, one in enumerate(content["study"]["ratios"]):
        one.update(ratio=2.0 + number, ratio_low=1.5, ratio_high=9.0, outcome="more_brittle")
    ratio(content, ratio=None, ratio_low=None, ratio_high=None, outcome="no_damage")
    row(content, task="code", criterion="level").update(ratio_high=None)
    data = ratios.build(content)
    ((figure, root),) = drawn(data)
    axes = figure.axes[0]
    null, *bars = axes.lines
    assert list(null.get_xdata()) == [1, 1] and len(bars) == len(data.rows) - 1 == 8
    assert bars[0].get_xdata().tolist() == [1.5, 9.0]
    assert bars[3].get_xdata()[1] == pytest.approx(axes.get_xlim()[1])
    assert [t.get_text() for t in axes.texts][0].startswith("no ratio: no damage; difference")
    assert "8 of 8 ratios" in data.caption()


def test_ratios_that_are_not_told_apart_are_not_counted(content):
    for one in content["study"]["ratios"]:
        one.update(ratio=1.2, ratio_low=0.8, ratio_high=1.5, outcome="not_resolved")
    assert ratios.build(content).caption().startswith("0 of 9 ratios")
    for one in content["study"]["ratios"]:
        one.update(ratio=None, outcome="no_damage")
    assert "No ratio is defined" in ratios.build(content).caption()


def test_fisher_and_curvature_by_step(content, drawn):
    data = sharpness.build(content)
    assert len(data.rows) == 2 * 2 * 2
    ((figure, _),) = drawn(data)
    assert len(figure.axes) == 1 + 2 * 3
    share = figure.axes[3]
    assert share.get_ylim()[0] == 0
    ends = [line for line in share.lines if list(line.get_xdata()) == [4, 4]]
    known = [r for r in data.rows if (r["task"], r["step"]) == ("code", 4)]
    assert [list(e.get_ydata()) for e in ends] == [
        [r["curvature_share_low"], r["curvature_share_high"]] for r in known
    ]
    assert "trace at the start" in data.caption() and "%" in data.caption()


def test_the_page_has_every_figure(content, read_page):
    page = render(content)
    for figure in STUDIES["brittleness"]:
        assert f'id="{figure.id}"' in page
    assert "<i>tuned" not in page and not read_page(page).unbalanced
    assert content["findings"][0].split(";")[0].replace("<i>", "&lt;i&gt;") in page


def test_a_study_without_numbers_says_why(content):
    content["study"].update(ratios=[], curves=[], geometry=[], runs=[])
    for figure in STUDIES["brittleness"]:
        assert figure.build(content) is None
    assert "nothing is compared" in render(content)

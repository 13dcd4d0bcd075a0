from __future__ import annotations

import torch
from torch import nn

from fisherscope.report.figures import STUDIES, path, predicted
from fisherscope.report.page import render
from fisherscope.results import plain
from fisherscope.studies.forgetting import forgetting
from fisherscope.studies.interference import interference


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def classes(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 6, generator=g)
    return x, x[:, :3].argmax(1)


def results(kind, found, **more):
    return plain({
        "format": 1,
        "kind": kind,
        "title": "A study",
        "findings": found.findings(),
        "models": {"model": {"source": "<b>x</b>"}},
        "tasks": {"a": {"n_examples": 40}, "<i>": {"n_examples": 40}},
        "settings": {},
        "study": found.to_dict(),
        **more,
    })


def interfered(**options):
    tasks = {"a": classes(), "<i>": classes(1)}
    found = interference(network(), tasks, scales=(0.1, 1.0), progress=False, **options)
    return results("interference", found)


def test_points_and_scores_of_interference():
    # Catches points of another size of step in the scores, and stored methods without a row.
    data = predicted.build(interfered(structures=("diagonal",), conflicts=False))
    assert len(data.points) == 8 and len(data.scales) == 2
    assert [m["method"] for m in data.methods] == ["full", "diagonal"]
    assert "slope" in data.caption() and "diagonal" in data.caption()
    assert data.table().rows and "<svg" in data.views()[0].svg
    assert "&lt;i&gt;" in data.views()[0].svg


def test_nothing_measured_is_said():
    found = interfered(structures=(), conflicts=False, measure=False)
    assert predicted.build(found) is None
    assert "No step was measured" in render(found)


def test_the_page_of_interference_has_every_figure_and_escapes():
    page = render(interfered(structures=("diagonal",)))
    for figure in STUDIES["interference"]:
        assert f'id="{figure.id}"' in page
    assert "<b>x</b>" not in page and "<i>" not in page.replace("<i>halves</i>", "")


def test_the_page_of_forgetting():
    tasks = {"a": classes(), "b": classes(1)}
    found = forgetting(network(), network(1), tasks, progress=False)
    content = results("forgetting", found)
    data = path.build(content)
    assert data.tasks == ("a", "b") and data.methods == ("diagonal", "kfac", "ekfac")
    assert len(data.rows) == 12 and "nats per token" in data.caption()
    assert 'id="path"' in render(content)


def test_a_path_of_nothing():
    found = forgetting(network(), network(), {"a": classes()}, progress=False)
    content = results("forgetting", found)
    assert path.build(content) is None
    assert "Nothing has moved" in render(content)

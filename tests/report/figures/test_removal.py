import pytest

from fisherscope.report.figures import removal
from fisherscope.report.figures.fractions import across
from fisherscope.report.page import render
from report.percolated import MODELS, TASKS, content


@pytest.fixture
def results():
    return content()


def test_the_curves_are_those_of_the_task_itself(results):
    # Catches a curve whose order was read from another task, models mixed, and lost points.
    data = removal.build(results)
    assert data.models == MODELS and data.tasks == TASKS and data.levels == ("weight", "neuron")
    every = results["study"]["curves"]
    expected = [row for row in every if row["by"] in ("", row["on"])]
    assert list(data.table().rows) == expected and len(expected) < len(every)
    assert {row["by"] for row in data.thresholds if row["order"] == "fisher"} == set(TASKS)


def test_lines_are_where_the_losses_are(results, drawn):
    # Catches panels of another model or task, a transposed axis, and intervals of another curve.
    data = removal.build(results)
    views = drawn(data)
    assert [view.label for view in data.views()] == [
        f"{level}, {model}" for level in ("Weights", "Neurons") for model in MODELS
    ]
    figure, _ = views[1]
    for task, axes in zip(TASKS, figure.axes[1:], strict=True):
        whole = data.intact[MODELS[1], task]
        assert axes.lines[0].get_ydata()[0] == whole["loss"]
        ceiling = whole["uninformed"] + 0.25 * (whole["uninformed"] - whole["loss"])
        mine = [
            r for r in data.curves
            if (r["model"], r["level"], r["on"], r["order"])
            == (MODELS[1], "weight", task, "fisher")
        ]  # fmt: skip
        line = axes.lines[2]
        assert line.get_xdata().tolist() == [across(r["fraction"]) for r in mine]
        assert line.get_ydata().tolist() == [min(r["loss"], ceiling) for r in mine]


def test_the_caption_says_where_each_task_is_lost(results):
    # Catches the threshold of another order, and the inverse order called an attack.
    for row in results["study"]["thresholds"]:
        if row["quantity"] == "midpoint":
            row["value"] = {"random": 0.4, "obd": 0.02, "inverse": 0.001}.get(row["order"], 0.1)
    caption = removal.build(results).caption()
    assert caption.count("is lost with") == 4
    assert "code of base is lost with 2% of the weights in Fisher·θ² order" in caption
    assert "in random order with 40%" in caption and "the neuron graph still joins" in caption


def test_the_page_holds_every_figure_and_escapes():
    # Catches a figure that is not registered, and names of models or tasks that reach the page raw.
    page = render(content())
    for figure in ("removal", "versus", "phase", "critical", "structural"):
        assert f'id="{figure}"' in page
    assert "<i>$tuned" not in page and "a & b" not in page


def test_nothing_removed():
    assert removal.build({}) is None and removal.FIGURE.absent({})

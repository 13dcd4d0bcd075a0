import pytest

from fisherscope.report.figures import structural
from fisherscope.report.figures.fractions import across
from report.percolated import MODELS, TASKS, content


@pytest.fixture
def results():
    return content()


def test_function_and_graph_of_the_same_order(results, drawn):
    # Catches a graph whose order was read from another task, function of another level or model,
    # and a kept part that counts from the wrong end.
    data = structural.build(results)
    assert data.models == MODELS and data.tasks == TASKS
    for task in TASKS:
        kept = data.kept[MODELS[1], task, "fisher"]
        assert kept[0] == (0.0, 1.0) and kept[-1][0] == 1.0 and kept[-1][1] < 0.2
    figure, _ = drawn(data)[1]
    axes = figure.axes[2]
    function, graph = axes.lines[0], axes.lines[1]
    kept = data.kept[MODELS[1], TASKS[1], "fisher"]
    assert function.get_xdata().tolist() == [across(f) for f, _ in kept]
    assert function.get_ydata().tolist() == [y for _, y in kept]
    mine = [
        row for row in results["study"]["structural"]
        if (row["model"], row["order"], row["by"]) == (MODELS[1], "fisher", TASKS[1])
    ]  # fmt: skip
    assert graph.get_ydata().tolist() == [row["giant"] for row in mine]


def test_the_caption_sets_both_thresholds_side_by_side(results):
    # Catches thresholds of another order, quantity or task.
    for row in results["study"]["thresholds"]:
        own = (row["level"], row["order"], row["quantity"]) == ("weight", "fisher", "midpoint")
        row["value"] = 0.03 if own else 0.5
    for row in results["study"]["structure"]:
        row["value"] = 0.9 if (row["order"], row["quantity"]) == ("fisher", "spanning") else 0.5
    caption = structural.build(results).caption()
    assert "code of base is lost at 3.0% in Fisher order, while its neuron graph joins" in caption
    assert caption.count("up to 90.0%") == 4


def test_no_graph():
    assert structural.build({}) is None and structural.FIGURE.absent({})

import numpy as np
import pytest

from fisherscope.report.figures import versus
from fisherscope.report.figures.fractions import across
from report.percolated import MODELS, TASKS, content


@pytest.fixture
def results():
    return content()


def test_the_dots_are_the_thresholds(results, drawn):
    # Catches a threshold of another model or task, and one that was never reached drawn somewhere.
    data = versus.build(results)
    assert data.models == MODELS and data.tasks == TASKS
    figure, _ = drawn(data)[0]
    for task, axes in zip(TASKS, figure.axes[1:], strict=True):
        dots = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"]
        mine = [
            across(row["value"]) for row in results["study"]["thresholds"]
            if (row["level"], row["quantity"], row["on"]) == ("weight", "midpoint", task)
            and row["by"] in ("", task) and row["value"] is not None
        ]  # fmt: skip
        np.testing.assert_allclose(sorted(dots), sorted(mine))


def test_only_resolved_differences_have_a_star(results, drawn, texts):
    # Catches a star for robustness, for another task, or for an unresolved ratio.
    for row in results["study"]["differences"]:
        row["verdict"] = "resolved" if row["quantity"] == "robustness" else "not_resolved"
    _, root = drawn(versus.build(results))[0]
    assert "★" not in texts(root)
    one = next(r for r in results["study"]["differences"] if r["quantity"] == "midpoint")
    one |= {"verdict": "resolved", "outcome": "ok", "value": 3.0, "low": 2.0, "high": 4.0}
    data = versus.build(results)
    _, root = drawn(data)[0]
    assert texts(root).count("★") == 1
    assert data.resolved("weight", one["on"], one["order"])
    caption = data.caption()
    assert caption.startswith("1 of ") and "3.00 times [2.00, 4.00]" in caption
    assert "in “<i>$tuned$” as in base" in caption


def test_one_model_is_not_compared():
    assert versus.build(content(alone=True)) is None
    assert "--model NAME=PLACE" in versus.FIGURE.absent({})

import math

import numpy as np
import pytest
from scipy import stats

from fisherscope.report.figures import damage, palette
from report.factory import make_results


def test_table_is_the_results(results):
    # Catches predicted and measured, or on and by, swapped.
    data = damage.build(results)
    rows = data.table().rows
    assert len(rows) == 16
    for row, source in zip(rows, results["damage"]["cells"], strict=True):
        assert {key: row[key] for key in source if key != "unit"} == {
            key: value for key, value in source.items() if key != "unit"
        }
    assert data.unit == "nats per token"


def test_matrices_show_the_table_side_by_side(results, drawn, texts):
    # Catches a transposed matrix, and predicted shown as measured.
    data = damage.build(results)
    ((_, root),) = drawn(data)
    shown = texts(root)
    cells = {(c.on, c.by): c for c in data.cells}
    for kind in ("predicted", "measured"):
        start = shown.index(kind.capitalize()) + 2
        expected = []
        for on in data.names:
            for by in data.names:
                value, low, high = cells[on, by].value(kind)
                expected.append(f"{1e3 * value:+.1f}")
                expected.append(f"±{1e3 * (high - low) / 2 / 1.96:.1f}")
        found = shown[start : start + len(expected)]
        assert [text.replace("\u2212", "-") for text in found] == expected
    assert "10⁻³ nats per token" in shown


def test_scatter_has_prediction_across_and_measurement_up(results, drawn):
    # Catches swapped axes, unequal limits (the identity would not be the diagonal), lost points.
    data = damage.build(results)
    ((figure, _),) = drawn(data)
    axes = figure.axes[1]
    points = [c.get_offsets()[0] for c in axes.collections]
    expected = [(1e3 * c.predicted, 1e3 * c.measured) for c in data.cells]
    np.testing.assert_allclose(points, expected)
    assert axes.get_xlim() == axes.get_ylim()
    identity = axes.lines[2]
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())


def test_intervals_of_both_are_drawn(results, drawn):
    # Catches an interval along the wrong axis or of the wrong kind.
    data = damage.build(results)
    ((figure, _),) = drawn(data)
    bars = figure.axes[1].lines[3:]
    assert len(bars) == 2 * len(data.cells)
    for (across, up), cell in zip(zip(bars[::2], bars[1::2], strict=True), data.cells, strict=True):
        np.testing.assert_allclose(
            across.get_xdata(), [1e3 * cell.predicted_low, 1e3 * cell.predicted_high]
        )
        np.testing.assert_allclose(
            up.get_ydata(), [1e3 * cell.measured_low, 1e3 * cell.measured_high]
        )
        np.testing.assert_allclose(up.get_xdata(), [1e3 * cell.predicted] * 2)


def test_one_scale_and_the_right_colours(results, drawn):
    # Catches a scale per matrix, harm in blue, and noise in full colour.
    data = damage.build(results)
    ((figure, _),) = drawn(data)
    largest = max(abs(v) for c in data.cells for v in (c.predicted, c.measured))
    for kind in ("predicted", "measured"):
        (mesh,) = (c for c in figure.axes[0].collections if c.get_gid() == kind)
        cells = {(c.on, c.by): c for c in data.cells}
        ordered = [cells[on, by] for on in data.names for by in data.names]
        expected = [
            palette.signed((1 if c.clear(kind) else 0.35) * c.value(kind)[0] / largest)
            for c in ordered
        ]
        np.testing.assert_allclose(mesh.get_facecolor(), expected)


def test_cells_whose_interval_includes_no_change_are_hatched(results, drawn):
    # Catches hatching by value instead of interval, or of the clear cells.
    cell = results["damage"]["cells"][1]
    cell |= {"measured": 0.001, "measured_low": -0.001, "measured_high": 0.003}
    data = damage.build(results)
    ((figure, _),) = drawn(data)
    hatched = sum(len(c.get_paths()) for c in figure.axes[0].collections if c.get_hatch())
    unclear = sum(not c.clear(k) for c in data.cells for k in ("predicted", "measured"))
    assert hatched == unclear >= 1
    assert not data.cells[1].clear("measured")


def test_correlation_and_its_jackknife(results):
    # Catches a jackknife over single cells, which share their steps, or one with a wrong factor.
    data = damage.build(results)
    x = np.array([c.predicted for c in data.cells])
    y = np.array([c.measured for c in data.cells])
    by = np.array([c.by for c in data.cells])
    r, error = data.correlation()
    assert r == pytest.approx(stats.pearsonr(x, y).statistic)
    left = np.array([stats.pearsonr(x[by != b], y[by != b]).statistic for b in data.names])
    assert error == pytest.approx(math.sqrt(3 / 4 * ((left - left.mean()) ** 2).sum()))


def test_too_few_steps_have_no_interval():
    # Catches an error invented from two steps, and a correlation of two points.
    two = damage.build(make_results(2, 2))
    assert two.correlation()[0] is not None and two.correlation()[1] is None
    results = make_results(2, 2)
    results["damage"]["cells"] = results["damage"]["cells"][:2]
    assert damage.build(results).correlation() == (None, None)


def test_signs_are_counted_among_clear_cells(results):
    # Catches wrong signs hidden, and unclear cells counted.
    cells = results["damage"]["cells"]
    for cell in cells:
        cell |= {"predicted": 0.01, "measured": 0.02, "measured_low": 0.01, "measured_high": 0.03}
    cells[0] |= {"measured": -0.02, "measured_low": -0.03, "measured_high": -0.01}
    cells[1] |= {"measured": 0.001, "measured_low": -0.01, "measured_high": 0.012}
    assert damage.build(results).signs() == (14, 15)


def test_worst_is_harm_to_another_task(results):
    # Catches the diagonal, or the largest help, being called the largest harm.
    others = [c for c in results["damage"]["cells"] if c["on"] != c["by"]]
    worst = max(others, key=lambda c: c["measured"])
    found = damage.build(results).worst()
    assert (found.on, found.by) == (worst["on"], worst["by"])
    caption = damage.build(results).caption()
    assert caption.startswith(
        f"The largest harm is to {worst['on']} by a step for {worst['by']}: +"
    )


def test_help_is_not_called_harm(results):
    # Catches "the largest harm" of a run in which every step helps.
    for cell in results["damage"]["cells"]:
        cell |= {"measured": -0.01, "measured_low": -0.02, "measured_high": -0.005}
    assert damage.build(results).caption().startswith("No step harms another task")


def test_predictions_alone_are_enough(results, drawn, texts):
    # Catches a crash when nothing was measured, and a scatter without points.
    for cell in results["damage"]["cells"]:
        cell |= dict.fromkeys(("measured", "measured_low", "measured_high"))
    data = damage.build(results)
    ((figure, root),) = drawn(data)
    assert len(figure.axes) == 1 and "Predicted against measured" not in texts(root)
    assert "predicted" in data.caption() and "measured" not in data.caption()


def test_one_task_is_described_by_its_own_step():
    # Catches an empty finding for a run of one task, whose only cell is its own.
    results = make_results(2, 2)
    results["damage"]["cells"] = results["damage"]["cells"][:1]
    data = damage.build(results)
    assert data.worst() is None
    assert data.caption().startswith("A step for math changes its own loss by \u2212")


def test_part_of_the_stored_fisher(results):
    # Catches the mean, which one tiny denominator ruins, or the inverse ratio.
    for i, cell in enumerate(results["damage"]["cells"]):
        cell |= {"second": 0.01, "diagonal": 0.002 if i else 5.0}
    assert damage.build(results).caught() == pytest.approx(0.2)
    results["damage"]["cells"][0]["second"] = 0.0
    assert damage.build(results).caught() == pytest.approx(0.2)


def test_very_different_sizes_get_a_bent_axis(results, drawn):
    # Catches all small cells melting into one point beside one large cell.
    results["damage"]["cells"][0] |= {"predicted": 900.0, "measured": 1000.0}
    ((figure, _),) = drawn(damage.build(results))
    axes = figure.axes[1]
    assert axes.get_xscale() == axes.get_yscale() == "symlog"
    assert axes.get_xlim() == axes.get_ylim()


def test_all_zero_damage(results, drawn):
    # Catches the logarithm of, or a division by, a largest damage of zero.
    for cell in results["damage"]["cells"]:
        cell |= dict.fromkeys(("predicted", "measured"), 0.0)
    data = damage.build(results)
    assert drawn(data) and data.correlation() == (None, None)


def test_reason_of_absence_is_the_run_s_own(results, blank):
    # Catches a report that hides why there is no damage.
    results["damage"] = {"definition": "Not computed: switched off.", "cells": []}
    assert damage.build(results) is None
    assert damage.FIGURE.absent(results) == "Not computed: switched off."
    assert damage.build(blank(make_results(2, 2))) is None
    assert "did not" in damage.FIGURE.absent({})

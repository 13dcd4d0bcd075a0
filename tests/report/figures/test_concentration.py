import numpy as np
import pytest

from fisherscope.report.figures import concentration, palette


def test_curves_are_those_of_the_results(results):
    # Catches a curve given to another task, and points lost or reordered.
    data = concentration.build(results)
    assert [curve.task for curve in data.curves] == [task["name"] for task in results["tasks"]]
    for curve in data.curves:
        source = results["concentration"][curve.task]
        for key in ("fraction", "mass", "low", "high"):
            np.testing.assert_array_equal(getattr(curve, key), source[key])
        assert curve.top == tuple(source["top"].values())


def test_table_is_what_is_drawn(results, drawn):
    # Catches axes swapped, a line of another task, and a band that is not low to high.
    data = concentration.build(results)
    ((figure, _),) = drawn(data)
    axes = figure.axes[0]
    looks = palette.series(data.order)
    for curve in data.curves:
        rows = [row for row in data.table().rows if row["task"] == curve.task]
        (line,) = (x for x in axes.lines if x.get_color() == looks[curve.task].color)
        np.testing.assert_allclose(line.get_xdata(), [row["fraction"] for row in rows])
        np.testing.assert_allclose(line.get_ydata(), [row["mass"] for row in rows])
    for band, curve in zip(axes.collections, data.curves, strict=True):
        box = band.get_paths()[0].get_extents()
        assert (box.y0, box.y1) == pytest.approx((min(curve.low), max(curve.high)))
    assert axes.get_xscale() == "log"


def test_even_spread_is_the_reference(results, drawn):
    # Catches a reference that is straight on the logarithmic axis instead of mass = fraction.
    ((figure, _),) = drawn(concentration.build(results))
    even = figure.axes[0].lines[0]
    np.testing.assert_allclose(even.get_xdata(), even.get_ydata())


def test_mass_between_points_is_read_in_log_fraction():
    # Catches interpolation on the linear axis, far off between decades.
    fraction, none = np.array([1e-4, 1e-2, 1.0]), (None, None, None)
    curve = concentration.Curve(
        "a", fraction, np.array([0.1, 0.5, 1.0]), fraction, fraction, none, None, None
    )
    assert curve.at(0.001)[0] == pytest.approx(0.3)
    assert curve.at(0.1)[0] == pytest.approx(0.75)
    assert curve.at(1e-6) == (None, None, None)


def test_exact_top_masses_win_over_interpolation(results):
    # Catches a headline number that differs from the analysis by interpolation.
    results["concentration"]["math"]["top"]["0.01"] = 0.123
    curve = concentration.build(results).curves[0]
    assert curve.at(0.01)[0] == 0.123
    assert curve.at(0.1)[0] == results["concentration"]["math"]["top"]["0.1"]


def test_caption_names_the_extremes(results):
    # Catches a caption with the tasks of page order, or with in-sample numbers as unseen ones.
    top = {name: curve["top"]["0.01"] for name, curve in results["concentration"].items()}
    first, last = max(top, key=top.get), min(top, key=top.get)
    data = concentration.build(results)
    caption = data.caption()
    assert caption.index(f"{100 * top[first]:.1f}% of the trace for {first}") < caption.index(
        f"{100 * top[last]:.1f}% of the trace for {last}"
    )
    _, low, high = next(curve for curve in data.curves if curve.task == first).at(0.01)
    assert f"({100 * low:.1f}% to {100 * high:.1f}% in unseen data)" in caption


def test_key_shows_the_numbers(results, drawn, texts):
    # Catches columns of the key swapped.
    data = concentration.build(results)
    ((_, root),) = drawn(data)
    shown = texts(root)
    for curve in data.curves:
        start = shown.index(curve.task)
        values = [f"{100 * mass:.1f}%" for mass in curve.top]
        assert shown[start + 1 : start + 4] == values


def test_without_halves_there_is_no_band(results, drawn):
    # Catches a band invented, or the caption silent about its absence.
    for curve in results["concentration"].values():
        curve["low"] = curve["high"] = [None] * len(curve["mass"])
    data = concentration.build(results)
    assert "no halves" in data.caption()
    ((figure, _),) = drawn(data)
    assert not figure.axes[0].collections


def test_points_that_a_log_axis_cannot_show_are_left_out(results):
    # Catches a fraction of zero or a missing mass breaking the axis or the interpolation.
    curve = results["concentration"]["math"]
    curve["fraction"][0], curve["mass"][3] = 0.0, None
    built = concentration.build(results).curves[0]
    assert len(built.mass) == len(curve["mass"]) - 2
    assert np.isfinite(built.mass).all() and (built.fraction > 0).all()


def test_groups_are_called_groups(results):
    # Catches a grouped Fisher described as if single parameters had been sorted.
    results["settings"]["structure"] = "grouped"
    data = concentration.build(results)
    assert "top 1% of groups" in data.caption() and data.curves[0].n_parameters is None


def test_nothing_to_draw(results, blank):
    # Catches an empty plot where there are no curves.
    assert concentration.build(blank(results)) is None
    assert concentration.build({**results, "concentration": {}}) is None

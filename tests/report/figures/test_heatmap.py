import re

import numpy as np
import pandas as pd
import pytest

from fisherscope.report.figures import heatmap, palette
from report.factory import make_results


def _frame(results):
    return pd.DataFrame([
        {"task": task, **row} for task, rows in results["importance"].items() for row in rows
    ])


def test_cells_pool_tensors_by_parameters(results):
    # Catches the plain mean of tensors' means, and a final norm mixed with those of layers.
    data = heatmap.build(results)
    frame = _frame(results)
    frame["layer"] = frame["layer"].fillna(-1)
    frame["held"] = frame["mean"] * frame["n_parameters"]
    frame["error"] = frame["mean_se"] * frame["n_parameters"]
    groups = frame.groupby(["task", "layer", "module"])
    expected = groups[["held", "error", "n_parameters", "share", "share_se"]].sum()
    assert len(data.cells) == len(expected)
    for cell in data.cells:
        row = expected.loc[cell.task, -1 if cell.layer is None else cell.layer, cell.module]
        assert cell.mean == pytest.approx(row["held"] / row["n_parameters"])
        assert cell.mean_se == pytest.approx(row["error"] / row["n_parameters"])
        assert cell.share == pytest.approx(row["share"])
        assert cell.share_se == pytest.approx(row["share_se"])
        assert cell.n_parameters == row["n_parameters"]


def test_shares_of_a_task_add_up_to_one(results):
    # Catches tensors lost on the way into cells.
    for task in heatmap.build(results).tasks:
        cells = [c for c in heatmap.build(results).cells if c.task == task]
        assert sum(c.share for c in cells) == pytest.approx(1)


@pytest.mark.parametrize(
    ("means", "reliable", "expected"),
    [
        ((1.0, 1.0), (True, True), True),
        ((9.0, 1.0), (True, False), True),
        ((1.0, 9.0), (True, False), False),
        ((1.0, 1.0), (False, False), False),
        ((1.0, 9.0), (True, None), False),
        ((0.0, 0.0), (True, True), True),
    ],
)
def test_a_cell_is_as_reliable_as_what_holds_most_of_it(results, means, reliable, expected):
    # Catches a huge doubtful weight hidden behind a reliable bias, and unknown taken as reliable.
    rows = [
        {"tensor": f"t{i}", "layer": 0, "module": "m", "n_parameters": 10, "mean": m, "reliable": r}
        for i, (m, r) in enumerate(zip(means, reliable, strict=True))
    ]
    results["importance"] = {"math": rows}
    (cell,) = heatmap.build(results).cells
    assert cell.reliable is expected


def test_order_is_that_of_the_forward_pass(results):
    # Catches layers sorted as text (10 before 2) and columns in the order of the file.
    for rows in results["importance"].values():
        rows.reverse()
    data = heatmap.build(results)
    assert data.grid.layers == tuple(range(6))
    assert data.grid.modules[:4] == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert data.grid.modules[-1] == "norm"
    assert data.grid.above == ("embed",) and data.grid.below == ("norm", "head")
    assert data.tasks == tuple(task["name"] for task in results["tasks"])


def test_one_scale_spans_the_layers_of_all_tasks(results):
    # Catches a scale per panel, and a scale stretched by the embedding.
    frame = _frame(results)
    cells = [c for c in heatmap.build(results).cells if c.layer is not None]
    means = np.log10([c.mean for c in cells])
    assert heatmap.build(results).scale() == pytest.approx((means.min(), means.max()))
    assert np.log10(frame["mean"].min()) < means.min()


def _cells_of(root):
    return {
        element.find("title").text: re.search(r"fill: (#\w+)", element.get("style"))[1]
        for element in root.iter("path")
        if element.find("title") is not None
    }


def test_colours_are_the_numbers_of_the_table(results, drawn):
    # Catches cells drawn in another order than coloured, log of the wrong base, a flipped scale.
    data = heatmap.build(results)
    low, high = data.scale()
    (_, mean), (_, share) = drawn(data)
    assert len(_cells_of(mean)) == len(data.table().rows) == len(data.cells)
    most = max(c.share for c in data.cells if c.layer is not None)
    for row in data.table().rows:
        place = row["module"] if row["layer"] is None else f"layer {row['layer']} {row['module']}"
        name = f"{row['task']}, {place}: "
        (fill,) = (f for tip, f in _cells_of(mean).items() if tip.startswith(name))
        assert fill == palette.sequential((np.log10(row["mean"]) - low) / (high - low))
        (fill,) = (f for tip, f in _cells_of(share).items() if tip.startswith(name))
        assert fill == palette.sequential(row["share"] / most)


def test_bars_outside_the_layers_carry_their_number(results, drawn, texts):
    # Catches a head that holds a third of the trace in the same colour as one that holds 3%.
    data = heatmap.build(results)
    (_, mean), (_, share) = drawn(data)
    bars = [c for c in data.cells if c.layer is None and c.reliable]
    assert {f"{100 * c.share:.1f}%" for c in bars if c.share > 0.01} <= set(texts(share))
    exponents = [f"{c.mean:.1e}".split("e") for c in bars]
    powers = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    assert {f"{m}·10{str(int(e)).translate(powers)}" for m, e in exponents} <= set(texts(mean))


def test_doubtful_cells_are_hatched(results, drawn):
    # Catches hatching of the wrong cells or none.
    data = heatmap.build(results)
    figure, _ = drawn(data)[0]
    hatched = [
        path.vertices[0].round(3)
        for collection in figure.axes[0].collections
        if collection.get_hatch()
        for path in collection.get_paths()
    ]
    assert len(hatched) == sum(not cell.reliable for cell in data.cells) > 0
    filled = [p.vertices[0].round(3) for c in figure.axes[0].collections if not c.get_hatch()
              and (c.get_gid() or "").startswith("cells") for p in c.get_paths()]  # fmt: skip
    order = [cell for task in data.tasks for cell in data.cells if cell.task == task]
    doubtful = [tuple(at) for at, cell in zip(filled, order, strict=True) if not cell.reliable]
    assert sorted(map(tuple, hatched)) == sorted(doubtful)


def test_caption_speaks_of_the_largest_cell_that_is_no_norm(results):
    # Catches a caption that names another cell than the table's top row.
    rows = heatmap.build(results).table().rows
    best = max((r for r in rows if r["module"] != "norm"), key=lambda r: r["mean"])
    caption = heatmap.build(results).caption()
    place = best["module"] if best["layer"] is None else f"layer {best['layer']} {best['module']}"
    assert f"in {place} for {best['task']}:" in caption
    doubtful = sum(not r["reliable"] for r in rows)
    assert f"{doubtful} of {len(rows)} cells" in caption
    shares = pd.DataFrame(rows).groupby(["task", "module"])["share"].sum()
    task, module = shares.idxmax()
    assert f"{module} holds {100 * shares.max():.0f}%" in caption and f"for {task};" in caption


def test_model_without_layers(drawn, texts):
    # Catches a crash or empty panels for a plain MLP, whose addresses have no layer.
    data = heatmap.build(make_results(3, 0))
    assert data.grid.layers == () and data.grid.below == ("0", "2", "4")
    root = drawn(data)[0][1]
    assert {"0", "2", "4"} <= set(texts(root)) and len(_cells_of(root)) == 9
    assert "module 0" in data.caption()


def test_zero_and_missing_means_are_told_apart(results, drawn, texts):
    # Catches log of zero, and a missing value coloured as if it were the smallest.
    rows = results["importance"]["math"]
    rows[1]["mean"], rows[4]["mean"], rows[4]["share"] = 0.0, None, None
    data = heatmap.build(results)
    cells = {(c.task, c.place): c for c in data.cells}
    zero = next(c for c in data.cells if c.mean == 0)
    gone = next(c for c in data.cells if c.mean is None)
    assert zero.log10 is None and gone.relative_se is None and len(cells) == len(data.cells)
    assert {"0", "–"} <= set(texts(drawn(data)[0][1]))


def test_many_cells_have_no_tooltips_but_a_table(drawn):
    # Catches a page of megabytes of tooltips, and a text that promises them.
    data = heatmap.build(make_results(4, 80))
    assert len(data.cells) > 2500
    assert "Hover" not in data.reading()
    assert _cells_of(drawn(data)[0][1]) == {}
    assert len(data.table().rows) == len(data.cells)


def test_panels_do_not_overlap_and_fit(drawn):
    # Catches panels pushed out of the picture by many tasks or many modules.
    modules = {f"expert_{i}": 1.0 for i in range(40)}
    for shape in (
        {"n_tasks": 12, "n_layers": 3},
        {"n_tasks": 2, "n_layers": 2, "modules": modules},
    ):
        figure, root = drawn(heatmap.build(make_results(**shape)))[0]
        width, height = (float(v) for v in root.get("viewBox").split()[2:])
        boxes = [
            path.get_extents()
            for c in figure.axes[0].collections
            if (c.get_gid() or "").startswith("cells")
            for path in c.get_paths()
        ]
        assert min(b.x0 for b in boxes) > 0 and max(b.x1 for b in boxes) <= width
        assert max(b.y1 for b in boxes) < height
        corners = {(round(b.x0, 1), round(b.y0, 1)) for b in boxes}
        assert len(corners) == len(boxes)


def test_nothing_to_draw(results, blank):
    # Catches a crash, or an empty map, where there is no importance.
    assert heatmap.build(blank(results)) is None
    assert heatmap.build({**results, "importance": {}}) is None

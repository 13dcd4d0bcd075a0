import numpy as np
import pytest

from fisherscope.report.figures import palette, phase
from report.percolated import MODELS, TASKS, content


@pytest.fixture
def results():
    return content()


def test_cells_and_line_are_where_they_were_measured(results, drawn):
    # Catches a transposed diagram, a panel of another order or task, and a line of another model.
    data = phase.build(results)
    assert data.models == MODELS and data.tasks == TASKS and data.orders == ("fisher", "random")
    assert list(data.table().rows) == results["study"]["plane"]
    figure, _ = drawn(data)[0]
    panels = iter(figure.axes[1:])
    for order in data.orders:
        for task in TASKS:
            axes, own = next(panels), (MODELS[0], task, order)
            cells = [r for r in data.cells if (r["model"], r["on"], r["order"]) == own]
            (boxes,) = axes.collections
            for row, path, fill in zip(cells, boxes.get_paths(), boxes.get_facecolors(),
                                       strict=True):  # fmt: skip
                low, high = path.get_extents().min, path.get_extents().max
                place = np.log10([row["fraction"], row["norm"]])
                assert (low < place).all() and (place < high).all()
                if row["lost"] is not None:
                    shade = palette.sequential(row["lost"])
                    expected = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
                    np.testing.assert_allclose(fill[:3], expected, atol=1e-6)
            line = [r for r in data.line if (r["model"], r["on"], r["order"]) == own]
            known = [r for r in line if r["value"] is not None]
            np.testing.assert_allclose(
                axes.lines[0].get_xydata(),
                np.log10([[r["fraction"], r["value"]] for r in known]).reshape(-1, 2),
            )


def test_the_caption_names_the_worst_concentration(results):
    # Catches the longest for the shortest noise, and the line of random weights.
    for i, row in enumerate(results["study"]["line"]):
        row["value"] = 0.5 + i if row["order"] == "fisher" else 0.01
    data = phase.build(results)
    first = next(r for r in data.line if r["order"] == "fisher")
    assert "code of base is lost to the shortest noise, 50% of" in data.caption()
    assert f"over the top {100 * first['fraction']:.2g}%" in data.caption()
    for row in results["study"]["line"]:
        row["value"] = None
    assert phase.build(results).caption() == "No length that was tried loses a task."


def test_no_noise():
    assert phase.build({}) is None and "side=0" in phase.FIGURE.absent({})

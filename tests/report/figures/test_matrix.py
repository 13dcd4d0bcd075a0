import pytest

from fisherscope.report.figures import canvas, matrix, palette

NAMES = ("one", "two", "three")


def _drawn(cell=60.0, rows=True, doubtful=None):
    with canvas.style("matrix"):
        sheet = canvas.add_sheet(canvas.new_figure(400, 400))
        entries = {
            (r, c): matrix.Entry(f"{r}|{c}", "±1", "#440154", f"tip {r}|{c}", (r, c) == doubtful)
            for r in NAMES
            for c in NAMES
            if (r, c) != ("two", "two")
        }
        tips = matrix.draw(
            sheet, entries, NAMES, palette.series(NAMES),
            left=100, top=50, cell=cell, gid="cells", rows=rows,
        )  # fmt: skip
    return sheet, tips


def _at(sheet):
    return {text.get_text(): text.get_position() for text in sheet.texts}


def test_rows_go_down_and_columns_across():
    # Catches a transposed matrix: the first name of a pair is the row.
    sheet, tips = _drawn()
    place = _at(sheet)
    for i, row in enumerate(NAMES):
        for j, column in enumerate(NAMES):
            if (row, column) != ("two", "two"):
                x, y = place[f"{row}|{column}"]
                assert x == 100 + 60 * (j + 0.5)
                assert 50 + 60 * i < y < 50 + 60 * (i + 0.5)
    assert "two|two" not in place
    (mesh,) = (c for c in sheet.collections if c.get_gid() == "cells")
    for path, tip in zip(mesh.get_paths(), tips, strict=True):
        x, y = place[tip.removeprefix("tip ")]
        assert path.contains_point((x, y))


def test_labels_stand_at_their_rows_and_columns():
    # Catches labels in another order than the cells.
    sheet, _ = _drawn()
    labels = [t for t in sheet.texts if t.get_text() in NAMES]
    left = [
        t.get_text()
        for t in sorted(labels, key=lambda t: t.get_position()[1])
        if not t.get_rotation()
    ]
    below = [t for t in sorted(labels, key=lambda t: t.get_position()[0]) if t.get_rotation()]
    assert left == list(NAMES) and [t.get_text() for t in below] == list(NAMES)
    assert min(t.get_position()[1] for t in below) > 50 + 3 * 60
    without, _ = _drawn(rows=False)
    assert sum(t.get_text() in NAMES for t in without.texts) == 3


def test_small_cells_leave_the_second_line_out():
    # Catches two lines of text on top of each other.
    assert sum(t.get_text() == "±1" for t in _drawn(cell=60.0)[0].texts) == 8
    assert sum(t.get_text() == "±1" for t in _drawn(cell=30.0)[0].texts) == 0


def test_doubtful_cell_is_hatched():
    # Catches hatching in the wrong place.
    sheet, _ = _drawn(doubtful=("three", "one"))
    (hatched,) = (c for c in sheet.collections if c.get_hatch())
    (path,) = hatched.get_paths()
    assert path.contains_point((130, 200))


@pytest.mark.parametrize(
    ("fill", "ink"),
    [
        ("#fde725", palette.ON_LIGHT),
        ("#440154", palette.ON_DARK),
        (palette.GRID, palette.INK),
        (palette.signed(1.0), palette.ON_DARK),
        (palette.signed(0.3), palette.INK),
    ],
)
def test_ink_suits_the_fill(fill, ink):
    # Catches fixed ink on a fill that follows the page's mode, and page ink on a fixed fill.
    assert matrix.Entry("", "", fill, "").ink == ink


def test_pair_labels_keep_names_apart():
    # Catches the second name written over the first, and rows that miss their marks.
    with canvas.style("pairs"):
        sheet = canvas.add_sheet(canvas.new_figure(200, 600))
        edge = matrix.pair_labels(
            sheet, [("one", "two"), ("a rather long name", "three")],
            palette.series([*NAMES, "a rather long name"]), left=10, top=20, step=30, room=80,
        )  # fmt: skip
    first, second, long, last = (t.get_position() for t in sheet.texts)
    assert first[1] == second[1] == 35 and long[1] == last[1] == 65
    label = sheet.texts[2].get_text()
    assert "…" in label and long[0] + canvas.extent(label, 11.5) < last[0]
    assert last[0] + canvas.extent("three", 11.5) <= edge

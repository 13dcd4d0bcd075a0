import numpy as np
import pytest

from fisherscope.report.figures import overlap
from report.factory import make_results


def test_rows_are_those_of_the_results(results):
    # Catches columns swapped (smaller for jaccard) on the way to the table.
    rows = overlap.build(results).table().rows
    assert len(rows) == len(results["overlap"]) == 6
    for row, source in zip(rows, results["overlap"], strict=True):
        assert {key: row[key] for key in source} == source


def test_dots_and_bars_are_where_the_table_says(drawn):
    # Catches dots of one sparsity in the panel of another, and the looser null drawn as the bar.
    results = make_results(3, 2, sparsities=(0.5, 0.9))
    data = overlap.build(results)
    ((figure, _),) = drawn(data)
    lines = list(data.lines().values())
    for axes, sparsity in zip(figure.axes[1:], (0.5, 0.9), strict=True):
        for y, line in enumerate(lines):
            (row,) = (r for r in line if r.sparsity == sparsity)
            here = [x for x in axes.lines if abs(np.mean(x.get_ydata()) - y) < 0.01]
            assert [tuple(x.get_xdata()) for x in here] == [
                (row.chance, row.chance),
                (row.chance_within, row.jaccard),
                (row.chance_within, row.chance_within),
                (row.jaccard,),
            ]


def test_caption_names_extremes_at_the_highest_sparsity():
    # Catches numbers of another sparsity than the one named.
    results = make_results(4, 2, sparsities=(0.5, 0.99))
    last = [row for row in results["overlap"] if row["sparsity"] == 0.99]
    best = max(last, key=lambda row: row["jaccard"])
    caption = overlap.build(results).caption()
    assert caption.startswith("Pruned to 99% sparsity, ")
    assert (
        f"{best['task_a']} and {best['task_b']} would keep {100 * best['jaccard']:.1f}% "
        f"(chance {100 * best['chance_within']:.1f}%)" in caption
    )


def test_chance_over_the_whole_model_stands_in(results):
    # Catches a missing null where only the simple one is known.
    for row in results["overlap"]:
        del row["chance_within"]
    (first, *_) = overlap.build(results).rows
    assert first.null == pytest.approx(results["overlap"][0]["chance"])


def test_many_pairs_and_sparsities_are_cut(drawn, texts):
    # Catches an endless figure, and a cut that nobody is told of.
    results = make_results(12, 2, sparsities=(0.1, 0.3, 0.5, 0.7, 0.9, 0.99))
    ((figure, root),) = drawn(overlap.build(results))
    assert len(figure.axes) == 1 + 4
    assert any("42 pairs between" in text for text in texts(root))
    assert {"10% pruned", "99% pruned"} <= set(texts(root))


def test_reason_of_absence_is_the_run_s_own(results):
    # Catches a false explanation: masks of grouped Fishers cannot be made at all.
    results |= {"overlap": [], "overlap_absent": "grouped Fishers have no masks"}
    assert overlap.build(results) is None
    assert overlap.FIGURE.absent(results) == "grouped Fishers have no masks"
    assert "at least two" in overlap.FIGURE.absent({})

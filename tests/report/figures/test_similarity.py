import itertools

import numpy as np
import pytest

from fisherscope.report.figures import palette, similarity
from report.factory import make_results


def _value(results, a, b, metric="cosine"):
    (row,) = (
        r
        for r in results["similarity"]
        if {r["task_a"], r["task_b"]} == {a, b} and r["metric"] == metric
    )
    return row


def test_every_pair_and_metric_is_kept(results):
    # Catches pairs of one metric shown under another.
    data = similarity.build(results)
    assert list(data.pairs) == ["cosine", "bhattacharyya", "spearman", "pearson", "jaccard"]
    for metric, pairs in data.pairs.items():
        assert len(pairs) == 6
        for pair in pairs:
            row = _value(results, pair.task_a, pair.task_b, metric)
            for key in ("value", "low", "high", "halves", "ceiling", "floor", "floor_high"):
                assert getattr(pair, key) == row[key]
    assert len(data.table().rows) == 30


def test_matrix_shows_the_numbers_of_the_table(results, drawn, texts):
    # Catches a transposed or permuted matrix: each cell must carry its own pair's number.
    data = similarity.build(results)
    for (_, root), metric in zip(drawn(data), data.pairs, strict=True):
        shown = texts(root)[: 2 * 12]
        expected = []
        for a, b in itertools.product(data.order, repeat=2):
            if a != b:
                row = _value(results, a, b, metric)
                expected += [f"{row['value']:.2f}", f"{row['low']:.2f} … {row['high']:.2f}"]
        assert shown == [text.replace("-", "\u2212") for text in expected]


def test_forest_shows_value_halves_ceiling_and_floor(results, drawn):
    # Catches the range of halves drawn around the value, and ceiling or floor left out.
    data = similarity.build(results)
    figure, _ = drawn(data)[0]
    axes = figure.axes[1]
    for y, pair in enumerate(data.ranked()):
        here = [line for line in axes.lines if abs(np.mean(line.get_ydata()) - y) < 0.01]
        drawn_at = [tuple(line.get_xdata()) for line in here]
        assert drawn_at == [
            (pair.ceiling, pair.ceiling),
            (pair.low, pair.high),
            (pair.halves,),
            (pair.value,),
        ]
        band = axes.collections[y].get_paths()[0].get_extents()
        assert band.x1 == pytest.approx(pair.floor_high)


def test_pairs_are_ranked_and_named_in_the_caption(results):
    # Catches a caption about other pairs than the most and the least alike.
    values = {
        frozenset((r["task_a"], r["task_b"])): r["value"]
        for r in results["similarity"]
        if r["metric"] == "cosine"
    }
    best, worst = max(values, key=values.get), min(values, key=values.get)
    ranked = similarity.build(results).ranked()
    assert {ranked[0].task_a, ranked[0].task_b} == best
    assert {ranked[-1].task_a, ranked[-1].task_b} == worst
    caption = similarity.build(results).caption()
    assert caption.startswith(f"By cosine, {ranked[0].words} are most alike ({values[best]:.3f};")
    assert f"{ranked[-1].words} least ({values[worst]:.3f};" in caption
    assert "6 of 6 pairs lie above chance" in caption


@pytest.mark.parametrize(
    ("low", "floor_high", "expected"),
    [(0.3, 0.2, True), (0.15, 0.2, False), (None, 0.2, True), (0.3, None, True)],
)
def test_above_chance_needs_even_the_lowest_halves(low, floor_high, expected):
    # Catches the comparison of the value, which has twice the data, or with the mean floor.
    pair = similarity.Pair("a", "b", 0.5, low, 0.6, 0.4, 0.9, 0.1, floor_high, 9, 9)
    assert pair.above_floor is expected


def test_unknown_floor_is_not_a_verdict():
    # Catches "above chance" where chance was never computed.
    pair = similarity.Pair("a", "b", 0.5, 0.4, 0.6, 0.5, 0.9, None, None, 9, 9)
    assert pair.above_floor is None
    assert "floor" not in similarity.describe(pair)


def test_alike_tasks_stand_together(results):
    # Catches an order that ignores likeness: two clear groups must not be mixed.
    groups = {"math": 0, "prose": 0, "code": 1, "dialogue": 1}
    for row in results["similarity"]:
        row["value"] = 0.9 if groups[row["task_a"]] == groups[row["task_b"]] else 0.1
    order = similarity.build(results).order
    sides = [groups[name] for name in order]
    assert sorted(order) == sorted(groups) and sides in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_colours_are_those_of_the_page(results, drawn):
    # Catches colours by cluster order: the page's order counts.
    data = similarity.build(results)
    looks = palette.series(task["name"] for task in results["tasks"])
    figure, _ = drawn(data)[0]
    edges = [c for c in figure.axes[0].collections if len(c.get_paths()) == 1]
    colors = [palette.to_hex(c.get_facecolor()[0]) for c in edges[: 2 * len(data.order)]]
    assert colors == [looks[name].color for name in data.order for _ in range(2)]


def test_many_pairs_are_cut_but_stay_in_the_table(drawn, texts):
    # Catches an endless figure, and a cut that nobody is told of.
    results = make_results(12, 2)
    results["similarity"] = [r for r in results["similarity"] if r["metric"] == "cosine"]
    data = similarity.build(results)
    figure, root = drawn(data)[0]
    assert any("38 pairs between" in text for text in texts(root))
    assert figure.axes[1].get_ylim()[0] == 27.5
    assert len(data.table().rows) == 66


def test_two_tasks_and_one_metric(drawn):
    # Catches a clustering of two tasks, and a caption about "the least alike" of one pair.
    results = make_results(2, 2)
    results["similarity"] = [r for r in results["similarity"] if r["metric"] == "spearman"]
    data = similarity.build(results)
    assert len(drawn(data)) == 1
    assert data.caption().startswith("The rank correlation of math and code is ")
    assert "1 of 1 pair lies above chance" in data.caption()


def test_missing_values(results, drawn, blank, texts):
    # Catches None compared with numbers, and a metric without any value drawn as a tab.
    for row in results["similarity"]:
        if row["metric"] == "jaccard":
            row["value"] = None
    results["similarity"][0] |= dict.fromkeys(("value", "low", "high", "ceiling", "floor"), None)
    data = similarity.build(results)
    assert "jaccard" not in data.pairs and len(data.ranked()) == 5
    assert "–" in texts(drawn(data)[0][1])
    assert similarity.build(blank(results)) is None
    assert similarity.build({**results, "similarity": []}) is None

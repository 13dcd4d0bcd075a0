import numpy as np
import pytest

from fisherscope.report.figures import conflict, conflicting


@pytest.fixture
def study():
    rng = np.random.default_rng(0)
    cosines, examples, tests = [], [], []
    for a, b, middle in (
        ("code", "prose", 0.3),
        ("code", "recipes", -0.4),
        ("prose", "recipes", 0.0),
    ):
        for scope in ("embed", "0", "1", "2", "all"):
            for metric in ("plain", "natural"):
                value = middle + 0.02 * rng.standard_normal()
                low, high = value - 0.1, value + 0.1
                outcome = "conflict" if high < 0 else "aligned" if low > 0 else "not_resolved"
                cosines.append({
                    "task_a": a, "task_b": b, "scope": scope, "metric": metric, "cosine": value,
                    "low": low, "high": high, "outcome": outcome,
                })  # fmt: skip
    for on, by in (("code", "recipes"), ("recipes", "code")):
        for metric in ("natural", "plain"):
            for i in range(8):
                q = 0.001 * 3**i
                examples.append({
                    "on": on, "by": by, "metric": metric, "example": f"{by}-{i}", "tokens": 9 + i,
                    "harm": 0.5 - 0.1 * i, "statistic": 6.0 - i, "p": q / 8, "q": q,
                })  # fmt: skip
            tests.append({
                "on": on, "by": by, "metric": metric, "level": "example", "n_tests": 40,
                "n_found": 4 if on == "code" else 3, "outcome": "found",
            })  # fmt: skip
    return {"conflict": {"cosines": cosines, "examples": examples, "tests": tests, "level": 0.05}}


def test_the_table_is_the_results(study):
    # Catches layers out of order, metrics or limits swapped.
    data = conflict.build(study)
    rows = data.table().rows
    assert list(rows) == study["conflict"]["cosines"]
    assert data.scopes == ("embed", "0", "1", "2", "all") and len(data.pairs) == 3


def test_dots_are_where_the_cosines_are(study, drawn):
    # Catches a panel of another pair, both metrics from one, and a transposed axis.
    data = conflict.build(study)
    ((figure, _),) = drawn(data)
    panels = figure.axes[1:]
    for pair, axes in zip(data.pairs, panels, strict=True):
        for metric, points in zip(("plain", "natural"), axes.collections, strict=True):
            own = [r for r in data.rows if r.pair == pair and r.metric == metric]
            np.testing.assert_allclose(points.get_offsets()[:, 0], [r.cosine for r in own])
            np.testing.assert_allclose(np.round(points.get_offsets()[:, 1]), range(5))
    bars = [line.get_xdata() for line in panels[0].lines[:5]]
    own = [r for r in data.rows if r.pair == data.pairs[0] and r.metric == "plain"]
    np.testing.assert_allclose(bars, [[r.low, r.high] for r in own])


def test_the_caption_counts_and_names_the_sharpest(study):
    # Catches an unresolved cosine called a conflict, and the mildest for the sharpest.
    caption = conflict.build(study).caption()
    assert caption.startswith("1 of 3 pairs of tasks pulls against each other over all layers, ")
    rows = [r for r in study["conflict"]["cosines"] if r["scope"] != "all"]
    worst = min(rows, key=lambda r: r["cosine"])
    place = f"layer {worst['scope']}" if worst["scope"].isdigit() else worst["scope"]
    assert f"between code and recipes in {place}" in caption and worst["metric"] in caption
    for row in study["conflict"]["cosines"]:
        row["outcome"] = "not_resolved"
    caption = conflict.build(study).caption()
    assert "0 of 3" in caption and "no single layer shows a resolved conflict" in caption


def test_unresolved_marks_are_open(study, drawn):
    # Catches a doubtful cosine that looks as sure as the others.
    data = conflict.build(study)
    ((figure, _),) = drawn(data)
    sure, doubtful = figure.axes[1].collections[0], figure.axes[3].collections[0]
    assert not np.allclose(sure.get_facecolors()[0], doubtful.get_facecolors()[0])


def test_examples_are_the_surest_of_the_plain_metric(study):
    # Catches examples of the other metric, of the wrong pair, and harmless ones marked found.
    data = conflicting.build(study)
    assert len(data.rows) == 10
    own = [r for r in data.rows if r.on == "code"]
    assert [r.example for r in own] == [f"recipes-{i}" for i in range(5)]
    assert [r.found for r in own] == [True, True, True, True, False]  # q of the fifth is 0.081
    assert data.counts == {("code", "recipes"): (4, 40), ("recipes", "code"): (3, 40)}
    for row in study["conflict"]["examples"]:
        row["harm"] = -1.0
    assert not any(r.found for r in conflicting.build(study).rows)


def test_the_caption_of_examples_counts_what_was_found(study):
    caption = conflicting.build(study).caption()
    assert caption.startswith("7 examples of 80 tested hurt another task")
    assert "most of recipes against code: 4 of 40" in caption and "q = 0.0010" in caption
    for row in study["conflict"]["tests"]:
        row["n_found"] = 0
    assert conflicting.build(study).caption().startswith("No example is found")


def test_both_can_be_drawn_with_hostile_names(study, drawn, texts):
    # Catches markup and dollar signs from ids that reach the page, and lost tooltips.
    study["conflict"]["examples"][8]["example"] = "<b>$x$</b>"
    ((_, root),) = drawn(conflicting.build(study))
    assert "<b>$x$</b>" in texts(root)


def test_nothing_to_show():
    assert conflict.build({}) is None and conflicting.build({"conflict": {"examples": []}}) is None
    assert conflict.FIGURE.absent({}) and conflicting.FIGURE.absent({})

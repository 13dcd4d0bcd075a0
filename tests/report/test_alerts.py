import math
import statistics

import pytest

from fisherscope.report.alerts import alerts, headline, tiles
from fisherscope.report.figures import concentration, damage, palette
from fisherscope.report.page import SECTIONS
from report.factory import make_results


def _tiles(results):
    return {tile.title: tile for tile in tiles(results)}


def test_red_alerts_come_first(results):
    # Catches a red alert below the fold because amber ones were found earlier.
    results["alerts"] = [{"level": level, "rule": f"r{i}", "message": "m"}
                         for i, level in enumerate(["amber", "red", "amber", "red"])]  # fmt: skip
    found = alerts(results, SECTIONS)
    assert [(a.level, a.rule) for a in found] == [
        ("red", "r1"),
        ("red", "r3"),
        ("amber", "r0"),
        ("amber", "r2"),
    ]


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("#tasks", "#tasks"),
        ("#coverage", "#coverage"),
        ("#nowhere", ""),
        ("javascript:alert(1)", ""),
        ("https://example.org/#tasks", ""),
        (None, ""),
    ],
)
def test_only_links_within_the_page_are_kept(results, link, kept):
    # Catches a script or a foreign address behind an alert, and links that lead nowhere.
    results["alerts"] = [{"level": "red", "rule": "r", "message": "m", "link": link}]
    assert alerts(results, SECTIONS)[0].link == kept


def test_alerts_survive_missing_fields(results):
    # Catches an alert lost because one of its fields is missing.
    results["alerts"] = [{"message": None}]
    (alert,) = alerts(results, SECTIONS)
    assert alert.level == "amber" and alert.message
    results["alerts"] = None
    assert alerts(results, SECTIONS) == []


def test_headline_is_the_largest_measured_harm(results):
    # Catches a headline from the prediction, from the diagonal, or with another pair's numbers.
    cells = [c for c in results["damage"]["cells"] if c["on"] != c["by"]]
    worst = max(cells, key=lambda c: c["measured"])
    first, rest = headline(results)
    assert first.startswith(
        f"A step for {worst['by']} costs {worst['on']} {worst['measured']:.4f} ±"
    )
    assert f"(predicted {worst['predicted']:.4f} ±" in first
    assert first.endswith("the largest of 12 interactions.")
    assert "correlate at" in rest and "most alike" in rest


def test_headline_claims_no_harm_that_is_not_clear(results):
    # Catches a headline about noise: the interval of the largest harm includes no change.
    for cell in results["damage"]["cells"]:
        cell |= {"measured": 0.001, "measured_low": -0.001, "measured_high": 0.003}
    assert headline(results)[0].startswith("No step for one task does measured harm to another")


def test_headline_without_damage_or_similarity(results):
    # Catches an empty headline for runs with less in them.
    results |= {"damage": {"cells": []}}
    assert "are the most alike" in headline(results)[0]
    results |= {"similarity": []}
    tops = [curve["top"]["0.01"] for curve in results["concentration"].values()]
    expected = f"The top 1% of parameters hold {100 * min(tops):.1f}% to {100 * max(tops):.1f}%"
    assert headline(results)[0].startswith(expected)
    results |= {"concentration": {}}
    assert headline(results)[0].startswith("The Fisher of math has a trace of ")
    assert headline({"tasks": []}) == ("0 tasks analysed.", "")


def test_one_task_headline_has_its_uncertainty():
    # Catches a headline number without what holds in unseen data.
    first, _ = headline(make_results(1, 2))
    assert "in unseen data" in first and "for math" in first


def test_five_tiles_for_several_tasks(results):
    # Catches a tile missing or six of them wrapping below the fold.
    titles = [tile.title for tile in tiles(results)]
    assert titles == [
        "Mean Fisher per parameter, log10",
        "Trace held by the top 1%",
        "Split-half rank agreement",
        "Cosine of tasks, mean",
        "Damage: predicted vs measured, r",
    ]
    assert len(tiles(make_results(1, 2))) == 5


def test_size_tile_is_log10_with_its_error(results):
    # Catches natural logarithms, and a relative error not divided by ln 10.
    tile = _tiles(results)["Mean Fisher per parameter, log10"]
    tasks = sorted(results["tasks"], key=lambda task: -task["mean_fisher"])
    low, high = (math.log10(tasks[i]["mean_fisher"]) for i in (-1, 0))
    assert tile.value == f"{low:.2f} … {high:.2f}".replace("-", "\u2212")
    for line, task in zip(tile.lines, tasks, strict=True):
        assert line.name == task["name"]
        value, error = line.value.replace("\u2212", "-").split(" ± ")
        assert float(value) == pytest.approx(math.log10(task["mean_fisher"]), abs=0.006)
        expected = task["trace_se"] / task["trace"] / math.log(10)
        assert float(error) == pytest.approx(expected, abs=0.006)


def test_top_tile_has_what_holds_in_unseen_data(results):
    # Catches in-sample numbers shown as if they held in new data.
    tile = _tiles(results)["Trace held by the top 1%"]
    curves = {curve.task: curve.at(0.01) for curve in concentration.build(results).curves}
    for line in tile.lines:
        mass, low, high = curves[line.name]
        assert line.value == f"{100 * mass:.1f}% ({100 * low:.0f}–{100 * high:.0f}%)"
    assert [line.name for line in tile.lines] == sorted(curves, key=lambda name: -curves[name][0])


def test_tile_lines_have_the_colours_of_the_page(results):
    # Catches colours by rank inside a tile.
    looks = palette.series(task["name"] for task in results["tasks"])
    for tile in tiles(results)[:3]:
        assert [line.series for line in tile.lines] == [
            f"s{looks[line.name].index}" for line in tile.lines
        ]


def test_similarity_tile_is_the_mean_with_floor_and_ceiling(results):
    # Catches a mean over all metrics.
    rows = [row for row in results["similarity"] if row["metric"] == "cosine"]
    tile = _tiles(results)["Cosine of tasks, mean"]
    assert float(tile.value) == pytest.approx(statistics.mean(r["value"] for r in rows), abs=0.006)
    ceiling = statistics.mean(row["ceiling"] for row in rows)
    assert tile.error == f"floor 0.05, ceiling {ceiling:.2f}"


def test_damage_tile_is_the_figure_s_correlation(results):
    # Catches a second, different computation of the same number.
    tile = _tiles(results)["Damage: predicted vs measured, r"]
    r, error = damage.build(results).correlation()
    assert float(tile.value) == pytest.approx(r, abs=1e-3)
    assert tile.error.startswith("± ") and float(tile.error[2:]) == pytest.approx(error, rel=0.3)


def test_many_tasks_show_the_extremes():
    # Catches tiles as tall as the screen, or extremes left out.
    results = make_results(12, 2)
    tile = tiles(results)[0]
    ranked = sorted(results["tasks"], key=lambda task: -task["mean_fisher"])
    assert [line.name for line in tile.lines] == [ranked[i]["name"] for i in (0, 1, -2, -1)]


def test_tiles_of_nothing(blank, results):
    # Catches tiles of dashes, and a logarithm of a zero Fisher.
    assert tiles(blank(results)) == []
    for task in results["tasks"]:
        task["mean_fisher"] = 0.0
    assert "Mean Fisher per parameter, log10" not in _tiles(results)

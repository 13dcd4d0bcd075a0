"""The figures of the remedies, from numbers made by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fisherscope.report.figures import STUDIES, remedies, tradeoff
from fisherscope.report.page import render

SEEDS = 3
# Arm: increase at 50% and 90% of the level (None: never reached), and to plain.
INCREASES = {
    "plain": (0.2, 0.6),
    "ewc": (0.1, 0.3),
    "l2": (0.15, 0.5),
    "lora": (0.25, None),
    "lora_random": (None, None),
}
VERDICTS = {"ewc": "better", "l2": "not_resolved", "lora": "worse"}


def row(arm, level, increase, task="mean"):
    of = {"l2": "ewc", "lora_random": "lora"}.get(arm, arm)
    plain = INCREASES["plain"][0 if level == 0.5 else 1]
    null = {"ewc": "l2"}.get(arm)
    there = increase is not None
    to_plain = increase - plain if there and arm != "plain" else None
    to_null = None
    if null and there:
        to_null = increase - INCREASES[null][0 if level == 0.5 else 1]

    def ends(value):
        return (None, None) if value is None else (value - 0.05, value + 0.05)

    return {
        "arm": arm, "of": of, "level": level, "task": task, "n_seeds": SEEDS,
        "outcome": "reached" if there else "never_reached", "reached": SEEDS if there else 0,
        "loss": 4 + increase if there else None, "increase": increase,
        "to_plain": to_plain, "to_plain_low": ends(to_plain)[0],
        "to_plain_high": ends(to_plain)[1], "to_plain_n": 0 if to_plain is None else SEEDS,
        "to_plain_verdict": "" if arm == "plain" else VERDICTS.get(arm, "too_few_seeds"),
        "to_null": to_null, "to_null_low": ends(to_null)[0], "to_null_high": ends(to_null)[1],
        "to_null_n": 0 if to_null is None else SEEDS,
        "to_null_verdict": "better" if to_null is not None else "too_few_seeds",
    }  # fmt: skip


@pytest.fixture
def study():
    curves = [
        {"arm": arm, "seed": seed, "step": 5 * k, "task": task, "loss": loss + 0.01 * seed}
        for arm in INCREASES
        for seed in range(SEEDS)
        for k in range(3)
        for task, loss in (
            ("<qa>", 3.0 - 0.5 * k), ("code", 4.0 + 0.1 * k), ("$p$", 5.0 + 0.3 * k)
        )
    ]  # fmt: skip
    return {
        "format": 1, "kind": "remedies", "title": "What would have helped", "findings": ["Found."],
        "models": {"model": {"source": "x"}},
        "tasks": {name: {"n_examples": 9} for name in ("code", "$p$", "<qa>")}, "settings": {},
        "study": {
            "name": "<qa>", "tasks": ["code", "$p$"], "levels": [0.5, 0.9],
            "table": [
                row(arm, level, found[k])
                for arm, found in INCREASES.items()
                for k, level in enumerate((0.5, 0.9))
            ],
            "curves": curves,
            "progress": [{"seed": 0, "start": 3.0, "best": 2.0, "outcome": "ok"},
                         {"seed": 1, "start": 3.0, "best": 3.0, "outcome": "no_progress"}],
        },
    }  # fmt: skip


def test_the_tab_that_most_remedies_reach_comes_first(study):
    # Catches a page that opens on a level where nothing can be compared.
    data = remedies.build(study)
    assert data.levels == (0.5, 0.9) and data.remedies() == ["ewc", "lora"]
    study["study"]["table"] = [r for r in study["study"]["table"] if r["arm"] != "lora"]
    assert remedies.build(study).levels == (0.9, 0.5)


def test_the_caption_says_what_the_rows_say(study):
    # Catches a verdict of another arm, a sign, and a remedy said to beat a null it was not held to.
    caption = remedies.build(study).caption()
    assert "progress on “<qa>”, EWC (−0.100 [−0.150, −0.0500]) costs code and “$p$”" in caption
    assert "less than plain fine-tuning; LoRA, least interfering (0.0500 [" in caption
    assert "EWC costs less than the null as well" in caption
    for r in study["study"]["table"]:
        r["to_null_verdict"] = "not_resolved"
    assert "no remedy costs less than the null as well" in remedies.build(study).caption()


def test_bars_are_drawn_to_scale_with_their_intervals(study, drawn):
    # Catches null and remedy swapped, bars of the loss instead of the difference, and missing ends.
    figures = drawn(remedies.build(study))
    assert len(figures) == 2
    figure, svg = figures[0]
    (axes,) = figure.axes
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == pytest.approx([-0.1, -0.05, 0.05])
    assert [patch.get_facecolor()[3] for patch in axes.patches] == [1, 0, 1]
    spans = [line.get_xdata() for line in axes.lines[1:]]
    assert np.allclose(spans, [[-0.15, -0.05], [-0.1, 0.0], [0.0, 0.1]])
    words = " ".join("".join(t.itertext()) for t in svg.iter("text"))
    assert "0 of 3 seeds get here" in words and "better" in words
    titles = ["".join(t.itertext()) for t in svg.iter("title")]
    assert len(titles) == 3 and titles[0].startswith("EWC: −0.1")


def test_paths_are_means_over_seeds_of_the_mean_old_loss(study, drawn):
    # Catches old losses summed instead of averaged, axes swapped, and another arm's null.
    data = tradeoff.build(study)
    assert data.paths["ewc"][0][1].tolist() == pytest.approx([4.5, 4.7, 4.9])
    assert data.marks == {0.5: 2.5, 0.9: 2.1}
    ((figure, _),) = drawn(data)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "EWC",
        "LoRA, least interfering",
    ]
    labelled = {line.get_label(): line for line in figure.axes[0].lines}
    thick = labelled["EWC"]
    assert thick.get_xdata().tolist() == pytest.approx([3.01, 2.51, 2.01])
    assert thick.get_ydata().tolist() == pytest.approx([4.51, 4.71, 4.91])
    assert "L2 of the same trace" in labelled and "LoRA, random modules" not in labelled
    low, high = figure.axes[0].get_xlim()
    assert low > high


def test_the_tradeoff_names_least_and_most(study):
    caption = tradeoff.build(study).caption()
    assert "have lost least with EWC (+0.300) and most with plain fine-tuning (+0.600)" in caption
    assert "LoRA, least interfering and LoRA, random modules never got there" in caption


def test_a_path_that_diverged_ends_its_mean(study):
    # Catches a mean of unlike steps, and an error for paths of unlike length.
    cut = [r for r in study["study"]["curves"] if not (r["arm"] == "ewc" and r["seed"] == 1
                                                       and r["step"] > 5)]  # fmt: skip
    study["study"]["curves"] = cut
    data = tradeoff.build(study)
    assert len(data.paths["ewc"][1][0]) == 2 and "<svg" in data.views()[0].svg


def test_the_page_has_both_figures_and_escapes_names(study):
    page = render(study)
    for figure in STUDIES["remedies"]:
        assert f'id="{figure.id}"' in page
    assert "<qa>" not in page and "&lt;qa&gt;" in page and "$p$" in page


def test_a_study_without_progress_says_so(study):
    bare = copy.deepcopy(study)
    bare["study"] |= {"table": [], "progress": []}
    assert remedies.build(bare) is None
    assert "made no progress" in render(bare)
    assert "Nothing is learnt of" in tradeoff.build(bare).caption()
    bare["study"]["curves"] = []
    assert tradeoff.build(bare) is None

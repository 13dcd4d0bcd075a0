"""Levels and paired differences on curves drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fisherscope.studies.course import Course
from fisherscope.studies.remedies.comparing import Gain, compare, gain_of
from fisherscope.studies.remedies.result import Remedies
from fisherscope.studies.seeds import over_seeds

EMPTY = dict.fromkeys(("progress", "runs", "curves", "modules"))


def course(new, *old, tokens=(1, 3)):
    """Two rows of a task, that always have the same loss per token."""
    counts = np.array(tokens)

    def losses(values):
        return np.array(values)[:, None] * counts

    names = [f"old{i}" for i in range(len(old))]
    return Course(
        steps=tuple(range(len(new))),
        losses={"new": losses(new), **{n: losses(v) for n, v in zip(names, old, strict=True)}},
        tokens=dict.fromkeys(["new", *names], counts),
        training=(),
        outcome="ok",
    )


def compared(courses, levels=(0.5,), tasks=("old0", "old1")):
    gains = {s: gain_of(c, "new") for (arm, s), c in courses.items() if arm == "plain"}
    return compare(courses, gains, new="new", old=tasks, levels=levels)


def one(table, arm, task="mean", level=0.5):
    found = table[(table.arm == arm) & (table.task == task) & (table.level == level)]
    (row,) = found.to_dict("records")
    return row


TWO = {
    ("plain", 0): course([4, 2, 0], [1, 2, 5], [1, 4, 6]),
    ("plain", 1): course([4, 2.5, 1], [1, 4, 5], [1, 1, 6]),
    # With seed 0 the level is a loss of 2, reached half-way between measurements; with seed 1 it
    # is 2.5, reached after three quarters of the first stretch.
    ("ewc", 0): course([4, 3, 1], [1, 1, 2], [1, 2, 4]),
    ("ewc", 1): course([4, 2, 2], [1, 1.5, 9], [1, 1.5, 9]),
    ("l2", 0): course([4, 3.5, 3], [1, 1, 1], [1, 1, 1]),
    ("l2", 1): course([4, 0], [1, 3], [1, 5]),
}


def test_old_losses_are_read_where_the_new_loss_crosses_the_level():
    # Catches levels of the other seed, the last crossing, the nearest measurement, and a mean over
    # rows instead of tokens.
    table = compared(TWO)
    assert one(table, "ewc", "old0")["loss"] == pytest.approx((1.5 + 1.375) / 2)
    assert one(table, "ewc", "old1")["loss"] == pytest.approx((3.0 + 1.375) / 2)
    assert one(table, "ewc")["loss"] == pytest.approx((2.25 + 1.375) / 2)
    assert one(table, "ewc")["increase"] == pytest.approx((1.25 + 0.375) / 2)
    assert one(table, "plain")["loss"] == pytest.approx((3.0 + 2.5) / 2)


def test_differences_are_paired_by_seed():
    # Catches a difference of means with the interval of unpaired runs, and its sign.
    row = one(compared(TWO), "ewc")
    gap = over_seeds([2.25 - 3.0, 1.375 - 2.5])
    assert (row["to_plain"], row["to_plain_low"], row["to_plain_high"]) == pytest.approx((
        gap.value,
        gap.low,
        gap.high,
    ))
    assert row["to_plain_n"] == 2 and row["to_plain_verdict"] == "not_resolved"


def test_only_seeds_that_both_reach_are_pairs():
    # Catches a loss at the end that stands in for a level that was never reached.
    table = compared(TWO)
    null, row = one(table, "l2"), one(table, "ewc")
    assert (null["outcome"], null["reached"], null["n_seeds"]) == ("reached_by_some", 1, 2)
    assert null["loss"] == pytest.approx(2.125) and np.isnan(null["loss_low"])
    assert row["to_null_n"] == 1 and row["to_null_verdict"] == "too_few_seeds"
    assert row["to_null"] == pytest.approx(1.375 - 2.125)
    high = one(compared(TWO, levels=(0.9,)), "ewc", level=0.9)
    assert (high["outcome"], high["reached"]) == ("never_reached", 0) and np.isnan(high["loss"])


def test_nulls_and_plain_have_no_null():
    table = compared(TWO)
    assert one(table, "plain")["to_plain_verdict"] == ""
    assert one(table, "l2")["to_null_verdict"] == "" and one(table, "l2")["of"] == "ewc"


def test_a_gain_is_of_the_best_measurement_and_its_interval_of_rows():
    # Catches the last measurement, rows that are taken as unpaired, and a mean over rows where
    # tokens count. With one token each the error is that of a mean of paired differences.
    rng = np.random.default_rng(0)
    start = rng.normal(5, 3, 50)
    saved = rng.normal(0.2, 0.1, 50)
    found = Course(
        steps=(0, 1, 2), losses={"new": np.stack([start, start - saved, start + 1])},
        tokens={"new": np.ones(50, dtype=int)}, training=(), outcome="ok",
    )  # fmt: skip
    gain = gain_of(found, "new")
    assert gain.best == pytest.approx(start.mean() - saved.mean())
    error = saved.std(ddof=1) / np.sqrt(50)
    assert gain.low == pytest.approx(saved.mean() - 1.959964 * error, rel=1e-6)
    assert gain.resolved and gain.level(0.25) == pytest.approx(start.mean() - 0.25 * saved.mean())


def test_noise_is_no_progress():
    # Catches a gain that is only the luckiest of several measurements of nothing.
    assert not Gain(start=1.0, best=0.99, low=-0.01).resolved
    flat = course([1, 1, 1], [1, 1, 1])
    assert not gain_of(flat, "new").resolved


def test_sentences_say_what_the_table_says():
    # Catches a finding of the wrong sign, and a level that is not the one of the number.
    import pandas as pd

    three = {("plain", s): course([4, 2, 0], [1, 2 + 0.1 * s, 5], [1, 4, 6]) for s in range(3)} | {
        ("ewc", s): course([4, 2, 1], [1, 1, 1 + s], [1, 1, 1]) for s in range(3)
    }
    three |= {("l2", s): course([4, 3], [1, 1], [1, 1]) for s in range(3)}
    table = compared(three, levels=(0.5, 0.9))
    arms = pd.DataFrame([{"label": "EWC", "diverged": 0, "n_seeds": 3, "skipped": ""}])
    found = Remedies(
        outcome="ok", name="new", tasks=("old0", "old1"), levels=(0.5, 0.9), table=table,
        arms=arms, settings={}, **{**EMPTY, "progress": pd.DataFrame(columns=["seed", "outcome"])},
    )  # fmt: skip
    lines = found.findings()
    assert lines[0].startswith("1 of 1 remedies keeps old0 and old1 better than plain")
    assert "none of these also better than its null" in lines[0]
    gap = -one(table, "ewc")["to_plain"]
    assert f"EWC: at 50% of plain fine-tuning's progress loses {gap:.3g} nats" in lines[2]
    assert lines[2].endswith("its null (L2 of the same trace) reaches no level that it reaches.")

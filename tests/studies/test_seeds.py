import math

import numpy as np
import pytest
from scipy import stats

from fisherscope.studies.seeds import over_seeds


def test_the_interval_is_that_of_a_one_sample_t_test():
    # Catches the normal quantile, a standard deviation without n - 1, and NaN that spread.
    values = [0.3, -0.1, 0.4, 0.2, math.nan, math.inf]
    found = over_seeds(values)
    known = stats.ttest_1samp(values[:4], 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.value == pytest.approx(0.2) and found.n == 4


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-1.0, -1.1, -0.9], "better"),
        ([1.0, 1.1, 0.9], "worse"),
        ([-1.0, 1.0, 0.1], "not_resolved"),
        ([0.0, 0.0], "not_resolved"),
        ([-1.0], "too_few_seeds"),
        ([math.nan], "too_few_seeds"),
    ],
)
def test_less_is_better(values, verdict):
    # Catches a sign the wrong way round, and a verdict from a single seed.
    assert over_seeds(values).verdict == verdict


def test_columns_are_named_after_the_number():
    named = over_seeds(np.array([1.0])).named("gap")
    assert named["gap"] == 1 and math.isnan(named["gap_low"]) and math.isnan(named["gap_high"])

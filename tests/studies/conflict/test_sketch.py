"""Plans of memory, and what a sketch does to inner products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fisherscope as fs
from fisherscope.studies.conflict.sketch import CountSketch, plan_rows

SIZES = {"small": 50, "large": 3000, "larger": 9000}


def test_whole_rows_where_they_fit_to_the_byte():
    # Catches sketches where there was room, and a limit that is off by one row.
    need = 4 * 7 * sum(SIZES.values())
    plan = plan_rows(SIZES, 7, need)
    assert plan.exact and plan.bytes == need and plan.relative_sd == 0
    assert not plan_rows(SIZES, 7, need - 1).exact
    assert plan_rows(SIZES, 7, "1MB").exact


def test_sketches_take_the_memory_that_there_is_and_no_more():
    # Catches hash codes or the second metric's sketches left out of the account, and widths
    # smaller than the memory allows.
    plan = plan_rows(SIZES, 7, 150_000)
    width = plan.widths["large"]
    cost = 2 * 7 * 4 * (50 + 2 * width) + 5 * 12_000
    assert plan.widths == {"small": 50, "large": width, "larger": width}
    assert plan.bytes == cost <= 150_000 < cost + 2 * 7 * 4 * 2
    assert plan.relative_sd == pytest.approx(width**-0.5)
    assert "2 of 3 tensors" in plan.describe()


@pytest.mark.parametrize("limit", [60_000, "much", "1kB"])
def test_a_limit_that_makes_no_sense(limit):
    with pytest.raises(fs.ParameterError, match="memory_limit"):
        plan_rows(SIZES, 7, limit)


def test_inner_products_are_unbiased_with_the_variance_that_the_plan_states():
    # Catches a sketch without signs (inner products are inflated by the sums) or one with the
    # same column for neighbours; the variance is the formula's, computed by hand here.
    g = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(400, generator=g)
    y = 1 + 0.3 * x + torch.randn(400, generator=g)
    x[:5] *= 6
    width, found = 64, []
    for seed in range(600):
        into = torch.zeros(2, width)
        CountSketch(400, width, seed, torch.device("cpu")).add(torch.stack([x, y]), into)
        found.append(float(into[0] @ into[1]))
    exact = float(x @ y)
    variance = float(x @ x * (y @ y) + exact**2 - 2 * (x**2 * y**2).sum()) / width
    assert abs(np.mean(found) - exact) < 4 * np.sqrt(variance / 600)
    assert np.var(found) == pytest.approx(variance, rel=0.25)


def test_it_is_linear_and_keyed_by_its_seed():
    # Catches a sketch drawn anew at every call: two uses of a tied parameter would not add up.
    sketch = CountSketch(40, 8, 3, torch.device("cpu"))
    x, y = torch.randn(2, 40), torch.randn(2, 40)
    one, both = torch.zeros(2, 8), torch.zeros(2, 8)
    sketch.add(x + y, one)
    sketch.add(x, both)
    CountSketch(40, 8, 3, torch.device("cpu")).add(y, both)
    torch.testing.assert_close(one, both)

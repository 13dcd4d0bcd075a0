"""What holds for every estimator alike."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from analysis.spectrum.matrices import Watched, matrix
from analysis.spectrum.test_operand import ESTIMATORS

each = pytest.mark.parametrize("name", ESTIMATORS)


def numbers(result) -> dict[str, np.ndarray]:
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return {key: np.asarray(v) for key, v in fields.items() if not isinstance(v, str)}


# Would catch: an unseeded generator, or one shared between calls.
@each
@pytest.mark.parametrize("kind", ["geometric", "low_rank"])
def test_the_seed_decides(name, kind):
    first, again = (numbers(ESTIMATORS[name](matrix(kind), seed=7)) for _ in range(2))
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key], err_msg=key)


# Would catch: a seed that is ignored.
@each
def test_another_seed_is_another_sample(name):
    first, other = (numbers(ESTIMATORS[name](matrix("flat"), seed=s)) for s in (0, 1))
    assert any(v.shape != other[k].shape or (v != other[k]).any() for k, v in first.items())


# Would catch: vectors drawn per block, so that the result depends on how many fit.
@each
@pytest.mark.parametrize("block_size", [1, 3, 100])
def test_the_block_size_changes_nothing(name, block_size):
    watched = Watched(matrix("geometric"))
    found = numbers(ESTIMATORS[name](watched, block_size=block_size))
    assert max(watched.widths) <= block_size
    expected = numbers(ESTIMATORS[name](matrix("geometric")))
    # Residuals and truncation are differences, and rounding is relative to what they are of.
    scale = max(np.abs(value).max() for value in expected.values() if value.dtype == float)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-10 * scale, err_msg=key)


# Would catch: one vector per product where the algorithm has several at hand.
@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "top_eigenpairs"])
def test_products_come_in_blocks(name):
    watched = Watched(matrix("flat"))
    result = ESTIMATORS[name](watched)
    assert len(watched.widths) - 2 <= result.products / 4 + 3


# Would catch: products that are made but not counted.
@each
def test_the_count_is_what_the_operator_saw(name):
    watched = Watched(matrix("clusters"))
    assert ESTIMATORS[name](watched).products == sum(watched.widths) - 3


@each
def test_global_generators_are_left_alone(name):
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    ESTIMATORS[name](matrix("low_rank"))
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


# Would catch: a threshold in absolute units, such as ARPACK's: in small units it takes anything
# for converged. A power of two commutes with rounding, so the numbers scale exactly.
@pytest.mark.parametrize("power", [-80, 80])
@pytest.mark.parametrize("name", [n for n in ESTIMATORS if "function" not in n and n[:3] != "log"])
def test_the_operators_unit_is_of_no_account(name, power):
    unit = 2.0**power
    found = numbers(ESTIMATORS[name](unit * matrix("clusters")))
    factors = dict.fromkeys(["weights", "eigenvectors", "products", "samples", "n"], 1.0)
    if name == "spectral_density":
        factors |= {"density": 1 / unit, "standard_error": 1 / unit}
    if "rank" in name:
        factors |= {"value": 1.0, "standard_error": 1.0, "truncation": 1.0}
    expected = numbers(ESTIMATORS[name](matrix("clusters")))
    scales: dict[float, float] = {}
    for key, value in expected.items():
        factor = factors.get(key, unit)
        scales[factor] = max(scales.get(factor, 0.0), np.abs(value).max())
    for key, value in expected.items():
        factor = factors.get(key, unit)
        np.testing.assert_allclose(
            found[key] / factor, value, rtol=1e-9, atol=1e-9 * scales[factor], err_msg=key
        )


@each
def test_results_are_frozen_tables(name):
    result = ESTIMATORS[name](matrix("flat"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.outcome = "better"
    assert len(result.to_frame())
    assert json.loads(json.dumps(result.to_dict()))["outcome"] == result.outcome
    assert "<table" in result._repr_html_()

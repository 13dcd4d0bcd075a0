"""Whether standard errors are of the size of the errors."""

from __future__ import annotations

import numpy as np


def check_calibration(found, truth: float) -> None:
    """Of 200 seeds: no bias, about 95% within two standard errors, most within three.

    With some ten vectors the errors over their standard errors have Student's tails (91% and
    99% for eight), and 200 seeds leave two points of noise. An error estimate that is too
    small by a third gives 80%.
    """
    errors = np.array([f.value for f in found]) - truth
    sizes = np.array([f.standard_error for f in found])
    assert len(found) == 200
    assert (np.abs(errors) <= 3 * sizes).mean() >= 0.92
    assert 0.83 <= (np.abs(errors) <= 2 * sizes).mean() <= 0.99
    assert abs(errors.mean()) <= 3 * errors.std() / np.sqrt(len(errors))
    assert 0.75 <= np.sqrt((sizes**2).mean() / (errors**2).mean()) <= 1.5

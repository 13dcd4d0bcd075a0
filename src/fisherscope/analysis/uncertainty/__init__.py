"""How sure a model may be of its predictions, from its Fisher as a posterior's precision."""

from fisherscope.analysis.uncertainty.calibration import expected_calibration_error
from fisherscope.analysis.uncertainty.links import probit
from fisherscope.analysis.uncertainty.posterior import Posterior
from fisherscope.analysis.uncertainty.result import Uncertainty
from fisherscope.analysis.uncertainty.uncertainty import uncertainty

__all__ = ["Posterior", "Uncertainty", "expected_calibration_error", "probit", "uncertainty"]

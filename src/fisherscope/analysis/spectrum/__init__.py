"""Spectra of symmetric operators that are only known by their products."""

from fisherscope.analysis.spectrum.density import SpectralDensity, spectral_density
from fisherscope.analysis.spectrum.eigenpairs import Eigenpairs, top_eigenpairs
from fisherscope.analysis.spectrum.functions import log_determinant, trace_of_function
from fisherscope.analysis.spectrum.operand import as_linear_operator
from fisherscope.analysis.spectrum.ranks import effective_rank, entropy_rank
from fisherscope.analysis.spectrum.spectral_estimate import SpectralEstimate
from fisherscope.analysis.spectrum.trace import trace

__all__ = [
    "Eigenpairs",
    "SpectralDensity",
    "SpectralEstimate",
    "as_linear_operator",
    "effective_rank",
    "entropy_rank",
    "log_determinant",
    "spectral_density",
    "top_eigenpairs",
    "trace",
    "trace_of_function",
]

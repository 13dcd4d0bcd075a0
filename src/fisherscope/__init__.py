"""fisherscope: Fisher information of unmodified models, exact, with its uncertainty."""

from fisherscope.defaults import DEFAULTS, FisherConfig
from fisherscope.errors import (
    ConfigError,
    CoverageError,
    DataError,
    FisherscopeError,
    IdentityError,
    LikelihoodError,
    NonFiniteError,
    ParameterError,
    StoreError,
    TaskError,
)
from fisherscope.estimation import estimate
from fisherscope.planning import Plan, plan
from fisherscope.store import FisherStore
from fisherscope.structures import DiagonalFisher, Fisher, FisherEMA, GroupedFisher, load

__all__ = [
    "DEFAULTS",
    "ConfigError",
    "CoverageError",
    "DataError",
    "DiagonalFisher",
    "Fisher",
    "FisherConfig",
    "FisherEMA",
    "FisherStore",
    "FisherscopeError",
    "GroupedFisher",
    "IdentityError",
    "LikelihoodError",
    "NonFiniteError",
    "ParameterError",
    "Plan",
    "StoreError",
    "TaskError",
    "estimate",
    "load",
    "plan",
]

"""The main job: from a run's configuration to its results."""

from fisherscope.metrics.config_file import config_from_yaml, config_to_yaml
from fisherscope.metrics.pipeline import analyze
from fisherscope.metrics.run_config import DamageConfig, RunConfig
from fisherscope.metrics.unified import Analysis, UnifiedModelAnalyzer

__all__ = [
    "Analysis",
    "DamageConfig",
    "RunConfig",
    "UnifiedModelAnalyzer",
    "analyze",
    "config_from_yaml",
    "config_to_yaml",
]

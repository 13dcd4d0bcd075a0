"""The main job: from a run's configuration to its results."""

from fisherscope.metrics.config_file import config_from_yaml, config_to_yaml
from fisherscope.metrics.pipeline import analyze
from fisherscope.metrics.run_config import DamageConfig, RunConfig

__all__ = ["DamageConfig", "RunConfig", "analyze", "config_from_yaml", "config_to_yaml"]

"""Forgetting: what fine-tuning has cost the old tasks, predicted beside measured."""

from fisherscope.studies.forgetting.forgetting import forgetting
from fisherscope.studies.forgetting.result import Forgetting

__all__ = ["Forgetting", "forgetting"]

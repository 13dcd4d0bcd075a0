"""What would have helped: remedies against forgetting, each beside its null."""

from fisherscope.studies.remedies.result import Remedies
from fisherscope.studies.remedies.study import remedies

__all__ = ["Remedies", "remedies"]

"""What would have helped: remedies against forgetting, each beside its null."""

from fisherscope.studies.remedies.remedies import remedies
from fisherscope.studies.remedies.result import Remedies

__all__ = ["Remedies", "remedies"]

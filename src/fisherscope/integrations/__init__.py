"""Where other libraries meet this one: Trainer callbacks, adapters, the hub."""

from fisherscope.integrations.ewc_callback import EWCCallback
from fisherscope.integrations.tracker import FisherTracker

__all__ = ["EWCCallback", "FisherTracker"]

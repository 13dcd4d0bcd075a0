"""Where other libraries meet this one: Trainer callbacks, adapters, the hub."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fisherscope.integrations.hub import from_hub, push_to_hub

if TYPE_CHECKING:
    from fisherscope.integrations.ewc_callback import EWCCallback
    from fisherscope.integrations.tracker import FisherTracker

__all__ = ["EWCCallback", "FisherTracker", "from_hub", "push_to_hub"]

_CALLBACKS = {"EWCCallback": "ewc_callback", "FisherTracker": "tracker"}


def __getattr__(name: str) -> Any:
    # The Trainer takes seconds to import, which who only reads a Fisher should not wait for.
    if name not in _CALLBACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CALLBACKS[name]}"), name)

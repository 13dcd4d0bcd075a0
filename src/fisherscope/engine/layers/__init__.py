"""Layer families. A new family is one file with a ``match`` function and one line here."""

from torch import nn

from fisherscope.engine.layers import convolution, embedding, experts, functional, linear, norm
from fisherscope.engine.layers.rule import Rule, TappedRule, UnexpectedShapeError

FAMILIES = (linear, embedding, convolution, norm, experts, functional)

__all__ = ["FAMILIES", "Rule", "TappedRule", "UnexpectedShapeError", "rule_for"]


def rule_for(module: nn.Module) -> Rule | None:
    """The first rule that recognises a module.

    Args:
        module: Any module.

    Returns:
        A new rule, or ``None`` if the parameters of this module take the slow path.
    """
    for family in FAMILIES:
        rule = family.match(module)
        if rule is not None:
            return rule
    return None

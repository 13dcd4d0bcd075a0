"""What covers which parameter: a fast rule, the fused head, or the exact slow path."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from torch import nn
from transformers.pytorch_utils import Conv1D

from fisherscope.engine.away import owners
from fisherscope.engine.head import FusedHead, Head
from fisherscope.engine.layers import rule_for
from fisherscope.engine.observer import BoundRule

SLOW = "one example at a time through autograd"


@dataclass(frozen=True)
class Coverage:
    """The result of looking at a model once.

    Attributes:
        rules: Fast rules, bound to requested names.
        head: How the backward pass starts.
        slow: Requested parameters that no rule covers, by name.
        text: Requested name to a sentence for the plan.
        single: Whether the model computes something else for an example in a batch than
            for the example alone, so that batches have to be of one.
        outputs_second: Names of weights stored as [in, out, ...].
        width: Last dimension of the model's output: classes or values.
        factored: Weights whose every use is a product with a matrix of inputs, so that they
            have Kronecker factors, to the bias of the same layer or ``None``.
        shared: Groups of such weights that are called with the very same input.
        scale: What the backward pass of a model that computes in fp16 is multiplied by at first,
            see :func:`fisherscope.engine.formats.first_scale`; ``None`` for others.
    """

    rules: list[BoundRule]
    head: Head
    slow: dict[str, nn.Parameter] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    single: bool = False
    outputs_second: frozenset[str] = frozenset()
    width: int = 0
    factored: dict[str, str | None] = field(default_factory=dict)
    shared: tuple[tuple[str, ...], ...] = ()
    scale: float | None = None

    def only(self, names: Collection[str]) -> Coverage:
        """The same for some of the parameters.

        Args:
            names: Requested names to keep.

        Returns:
            A new coverage.
        """
        head = self.head
        if isinstance(head, FusedHead):
            own = {local: name for local, name in head.names.items() if name in names}
            head = FusedHead(head.likelihood, head.module, own)
        rules = [
            replace(rule, names={k: n for k, n in rule.names.items() if n in names})
            for rule in self.rules
        ]
        return replace(
            self,
            rules=[rule for rule in rules if rule.names],
            head=head,
            slow={n: p for n, p in self.slow.items() if n in names},
            text={n: t for n, t in self.text.items() if n in names},
            factored={
                n: (b if b in names else None) for n, b in self.factored.items() if n in names
            },
            shared=tuple(tuple(n for n in group if n in names) for group in self.shared),
        )


def bind(
    model: nn.Module,
    requested: dict[str, nn.Parameter],
    head: Head,
    slow: dict[str, str],
    single: bool = False,
    width: int = 0,
) -> Coverage:
    """Give every requested parameter a rule or the slow path.

    Args:
        model: The model.
        requested: Name to parameter.
        head: How the backward pass starts; a fused head covers its own parameters.
        slow: Name to reason, for parameters already known to need the slow path.
        single: Whether batches have to be of one. Default: ``False``.
        width: Last dimension of the model's output. Default: 0, unknown.

    Returns:
        A coverage in which each requested parameter occurs exactly once.
    """
    names = owners(model, requested)
    used: dict[int, dict[str, str]] = {}
    for (module_id, local), name in names.items():
        if name not in slow:
            used.setdefault(module_id, {})[local] = name
    fused = head.module if isinstance(head, FusedHead) else None
    bound: list[BoundRule] = []
    labels: dict[str, list[str]] = {}
    without: dict[str, str] = {}
    for module in model.modules():
        own = used.get(id(module), {})
        if not own or module is fused:
            continue
        rule = rule_for(module)
        for local, name in own.items():
            if rule is not None and local in rule.parameters:
                labels.setdefault(name, []).append(rule.label)
            else:
                without.setdefault(name, f"{type(module).__name__}.{local} has no fast rule")
        if rule is not None:
            covered = {local: name for local, name in own.items() if local in rule.parameters}
            bound.append(BoundRule(rule, covered))
    if isinstance(head, FusedHead):
        head = FusedHead(
            head.likelihood,
            head.module,
            {local: name for local, name in head.names.items() if name not in slow},
        )
        for local, name in head.names.items():
            labels.setdefault(name, []).append("fused head" if local == "weight" else "head bias")
    # A second owner without a rule does no harm by itself: verification tells whether the
    # parameter is really used there.
    uncovered = {n: slow.get(n) or without[n] for n in requested if n not in labels}
    uses = [(b.names, b.rule.factored) for b in bound if b.names]
    if isinstance(head, FusedHead) and head.names:
        uses.append((head.names, True))
    return Coverage(
        rules=[b for b in bound if b.names],
        head=head,
        slow={name: requested[name] for name in uncovered},
        text={
            name: f"{SLOW}: {uncovered[name]}" if name in uncovered else _describe(labels[name])
            for name in requested
        },
        single=single,
        outputs_second=frozenset(
            names[id(module), "weight"]
            for module in model.modules()
            if _stores_outputs_second(module) and (id(module), "weight") in names
        ),
        width=width,
        factored=_factored(uses, set(uncovered)),
    )


def _factored(
    uses: list[tuple[dict[str, str], bool]], uncovered: set[str]
) -> dict[str, str | None]:
    """Weights with Kronecker factors, and the bias that goes with each."""
    biases: dict[str, set[str | None]] = {}
    broken = set(uncovered)
    for names, factored in uses:
        weight = names.get("weight")
        if weight is None or not factored:
            broken |= set(names.values())
            continue
        bias = names.get("bias")
        biases.setdefault(weight, set()).add(bias if bias not in uncovered else None)
    found: dict[str, str | None] = {}
    for weight, partners in biases.items():
        if weight not in broken:
            # Uses with different biases have no bias in common.
            (bias,) = partners if len(partners) == 1 else (None,)
            found[weight] = bias if bias not in broken else None
    return found


def _stores_outputs_second(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return module.groups == 1  # with groups, the second dimension is a part of the outputs
    return isinstance(module, Conv1D)


def _describe(labels: list[str]) -> str:
    words = " + ".join(dict.fromkeys(labels))
    return f"{words} ({len(labels)} uses summed)" if len(labels) > 1 else words

"""A model as a graph of neurons, its weights as bonds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fisherscope.analysis.masks.couplings import Coupling, Share, head_couplings
from fisherscope.analysis.masks.linears import LinearLayer, linear_layers
from fisherscope.analysis.masks.neurons import neuron_couplings
from fisherscope.errors import ParameterError
from fisherscope.naming import by_layer


@dataclass(frozen=True, eq=False)
class Bundle:
    """All bonds between two sets of neurons.

    Attributes:
        units: Number of neurons on the one side.
        width: Number of neurons on the other.
        first_unit: Node of the first unit.
        first_other: Node of the first neuron on the other side.
        shares: The weights that make a bond; several of one bond are pooled.
    """

    units: int
    width: int
    first_unit: int
    first_other: int
    shares: tuple[Share, ...]


@dataclass(frozen=True, eq=False)
class NeuronGraph:
    """Neurons and the bonds between them.

    Attributes:
        nodes: How many neurons.
        bundles: The bonds, set by set; a bond's number counts through them in row-major order.
        inputs: Nodes that a signal enters by.
        outputs: Nodes that it leaves by.
        tensors: Parameters that the bonds are made of.
    """

    nodes: int
    bundles: tuple[Bundle, ...]
    inputs: range
    outputs: range

    @property
    def tensors(self) -> list[str]:
        """Names of the parameters that bonds are made of."""
        return list(dict.fromkeys(s.tensor for b in self.bundles for s in b.shares))

    @property
    def bonds(self) -> int:
        """How many bonds."""
        return sum(b.units * b.width for b in self.bundles)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The two nodes of every bond.

        Returns:
            int64 ``[bonds]`` twice.
        """
        first, second = [], []
        for b in self.bundles:
            first.append(np.repeat(b.first_unit + np.arange(b.units), b.width))
            second.append(np.tile(b.first_other + np.arange(b.width), b.units))
        return np.concatenate(first), np.concatenate(second)

    def pooled(self, values: Mapping[str, Tensor]) -> np.ndarray:
        """Add up the values of all weights of each bond.

        Args:
            values: Parameter name to tensor of the parameter's shape, on the CPU.

        Returns:
            float64 ``[bonds]``.
        """
        parts = []
        for b in self.bundles:
            total = torch.zeros(b.units, b.width, dtype=torch.float64)
            for share in b.shares:
                rows = values[share.tensor].double().movedim(share.dim, 0)
                owned = share.owner >= 0
                total.index_add_(0, share.owner[owned], rows[owned])
            parts.append(total.reshape(-1).numpy())
        return np.concatenate(parts)


def neuron_graph(model: nn.Module, parameters: Sequence[str]) -> NeuronGraph:
    """The graph of a model.

    A transformer's nodes are the channels of its residual stream before the first layer and
    after each layer, and between two of these the layer's attention heads (key-value heads with
    their query heads) and the hidden units of its MLP. A bond joins a head or unit with a channel;
    where it is made of several weights (the rows of a head, gate and up projection) they are
    pooled. Skip connections are no bonds: with them every channel reaches the end by itself,
    whatever is removed. Nor are the vocabulary, norms and biases. Any other model must be a
    chain of linear layers, in which each weight is a bond.

    Args:
        model: The model.
        parameters: Names of the parameters that there are values of.

    Returns:
        The graph.

    Raises:
        ParameterError: If the model is neither.
    """  # noqa: DOC502 (raised by callees)
    layers = [layer for layer in linear_layers(model).values() if layer.weight in parameters]
    if getattr(model, "config", None) is None:
        return _chain(layers)
    return _transformer(model, parameters)


def _chain(layers: Sequence[LinearLayer]) -> NeuronGraph:
    if not layers:
        raise ParameterError(
            "structure: the model has no linear layer among the parameters, so there is no graph "
            "of neurons; use structure=False"
        )
    bundles, node = [], 0
    for before, layer in zip([None, *layers], layers, strict=False):
        if before is not None and before.outputs != layer.inputs:
            raise ParameterError(
                f"structure: the linear layers {before.weight!r} ({before.outputs} outputs) and "
                f"{layer.weight!r} ({layer.inputs} inputs) make no chain; use structure=False"
            )
        own = Share(layer.weight, 1 if layer.transposed else 0, torch.arange(layer.outputs))
        after = node + layer.inputs
        bundles.append(Bundle(layer.outputs, layer.inputs, after, node, (own,)))
        node = after
    end = node + layers[-1].outputs
    return NeuronGraph(end, tuple(bundles), range(layers[0].inputs), range(node, end))


def _transformer(model: nn.Module, parameters: Sequence[str]) -> NeuronGraph:
    try:
        found = [*head_couplings(model, parameters), *neuron_couplings(model, parameters)]
    except ParameterError as error:
        raise ParameterError(
            f"structure: heads and hidden units can't be told apart, so there is no graph of "
            f"neurons; use structure=False ({error})"
        ) from error
    leads = {layer.weight: 1 if layer.transposed else 0 for layer in linear_layers(model).values()}
    stages = _by_stage(found)
    width = _width(model, found, leads)
    bundles, node = [], 0
    for couplings in stages.values():
        after = node + width + sum(c.units for c in couplings)
        unit = node + width
        for coupling in couplings:
            into, out = _sides(coupling, leads)
            bundles.append(Bundle(coupling.units, width, unit, node, into))
            bundles.append(Bundle(coupling.units, width, unit, after, out))
            unit += coupling.units
        node = after
    end = node + width
    return NeuronGraph(end, tuple(bundles), range(width), range(node, end))


def _by_stage(couplings: Sequence[Coupling]) -> dict[str, list[Coupling]]:
    places = by_layer([min(c.tensors) for c in couplings])
    outside = [name for name, (layer, _) in places.items() if layer is None]
    if outside:
        raise ParameterError(
            f"structure: {outside[0]!r} is in no numbered layer, so its place in the graph of "
            "neurons is not known; use structure=False"
        )
    stages: dict[tuple[int, str], list[Coupling]] = {}
    for coupling in couplings:
        layer, label = places[min(coupling.tensors)]
        stages.setdefault((layer or 0, label), []).append(coupling)
    labels = {label.rpartition(".")[0] for _, label in stages}
    if len(labels) > 1:
        raise ParameterError(
            f"structure: the model has several stacks of layers ({', '.join(sorted(labels))}), "
            "which the graph of neurons does not join; use structure=False"
        )
    return {label: stages[layer, label] for layer, label in sorted(stages)}


def _sides(
    coupling: Coupling, leads: Mapping[str, int]
) -> tuple[tuple[Share, ...], tuple[Share, ...]]:
    """Shares that lead into the units, and those that lead out of them."""
    matrices = [share for share in coupling.shares if share.tensor in leads]
    into = tuple(s for s in matrices if s.dim == leads[s.tensor])
    return into, tuple(s for s in matrices if s.dim != leads[s.tensor])


def _width(model: nn.Module, couplings: Sequence[Coupling], leads: Mapping[str, int]) -> int:
    widths = {
        model.get_parameter(share.tensor).shape[1 - share.dim]
        for coupling in couplings
        for side in _sides(coupling, leads)
        for share in side
    }
    if len(widths) != 1:
        raise ParameterError(
            f"structure: heads and hidden units read and write {sorted(widths)} channels, so there "
            "is no common residual stream; use structure=False"
        )
    return widths.pop()

"""Adapters on the linear layers through which the new task hurts the old ones least."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
from torch import nn

from fisherscope.analysis.damage import damage
from fisherscope.analysis.descent import descent
from fisherscope.analysis.masks.linears import LinearLayer, linear_layers
from fisherscope.data import Example
from fisherscope.naming import address
from fisherscope.preparation import Prepared

# Random choices among which the one of the most nearly equal size is taken.
_DRAWS = 1000


@dataclass(frozen=True)
class Place:
    """A linear layer that could get an adapter.

    Attributes:
        module: Its name.
        weight: Name of its weight.
        size: Inputs plus outputs: what an adapter of rank 1 has of parameters.
    """

    module: str
    weight: str
    size: int


def unavailable(model: nn.Module) -> str | None:
    """Why adapters can't be tried, if they can't.

    Args:
        model: The model.

    Returns:
        The reason, or ``None``.
    """
    if find_spec("peft") is None:
        return "peft is not installed; pip install peft"
    if len(places(model)) < 2:
        return "the model has fewer than two linear layers of their own to choose among"
    return None


def places(model: nn.Module) -> list[Place]:
    """Linear layers whose weight is trained and is theirs alone, but no output heads.

    Args:
        model: The model.

    Returns:
        In the model's order.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(p) for p in named.values())
    layers = linear_layers(model)
    shared = Counter(layer.weight for layer in layers.values())

    def fits(module: str, layer: LinearLayer) -> bool:
        weight = named[layer.weight]
        parent = model.get_submodule(module.rpartition(".")[0])
        return (
            uses[id(weight)] == 1
            and shared[layer.weight] == 1
            and weight.requires_grad
            and address(layer.weight)[1] not in {"embed", "head"}
            # It reads its projection's weight without calling the projection.
            and not isinstance(parent, nn.MultiheadAttention)
        )

    return [
        Place(module, layer.weight, layer.inputs + layer.outputs)
        for module, layer in layers.items()
        if module and fits(module, layer)
    ]


def interference_of(
    model: nn.Module,
    learn: Prepared,
    protect: Mapping[str, Sequence[Example]],
    *,
    likelihood: str,
    draws: int,
    seed: int,
    batch_size: int | None,
) -> pd.DataFrame:
    r"""What the new task's step costs the old tasks in each linear layer, per nat it gains there.

    The step :math:`\delta` is one of steepest descent on the new task, as long as its curvature
    allows. In layer m alone it gains :math:`-g_B^\top\delta_m` at first order and costs an old
    task :math:`g_A^\top\delta_m + \frac12 \delta_m^\top F_A \delta_m`. A layer where the step is
    short costs little and gains little, so layers are ranked by the ratio of the two.

    Args:
        model: The model; it comes back untouched.
        learn: Checked request of the new task.
        protect: Old task to the examples that its damage is predicted from.
        likelihood: As in :func:`fisherscope.estimate`.
        draws: Label draws of the second order.
        seed: Keys the draws.
        batch_size: Examples per pass.

    Returns:
        A row per layer, the least interfering first: ``module``, ``weight``, ``size`` (inputs plus
        outputs), ``gain``, ``cost`` (mean over the old tasks) and ``ratio`` of these, and the cost
        to each task under ``cost:TASK``, in nats per token.
    """
    found = places(model)
    step = descent(learn, fraction=1.0)
    moves = {p.module: {p.weight: -step.rate * step.gradient[p.weight]} for p in found}
    rows = {
        p.module: {
            "module": p.module,
            "weight": p.weight,
            "size": p.size,
            "gain": step.rate * float(step.gradient[p.weight].double().square().sum()),
        }
        for p in found
    }
    for task, examples in protect.items():
        table = damage(
            model,
            list(examples),
            moves,
            likelihood=likelihood,
            draws=draws,
            seed=seed,
            batch_size=batch_size,
            measure=False,
        ).table
        for row in table.to_dict("records"):
            rows[row["displacement"]][f"cost:{task}"] = row["predicted"]
    frame = pd.DataFrame(list(rows.values()))
    frame["cost"] = frame[[f"cost:{task}" for task in protect]].mean(axis=1)
    # A layer in which the step does not move gains nothing: it comes last.
    ratio = frame["cost"] / frame["gain"].where(frame["gain"] > 0)
    frame["ratio"] = ratio.fillna(np.inf)
    return frame.sort_values("ratio", kind="stable", ignore_index=True)


def count_of(share: float, candidates: int) -> int:
    """How many layers get an adapter: at least one, and not all.

    Args:
        share: Share of the candidates.
        candidates: How many there are.

    Returns:
        A whole number.
    """
    return min(max(1, round(share * candidates)), candidates - 1)


def random_like(chosen: Sequence[str], found: Sequence[Place], seed: int) -> list[str]:
    """As many random layers, with as nearly as possible as many parameters.

    Args:
        chosen: The layers that they are held against.
        found: All candidates.
        seed: Of the choice.

    Returns:
        Names of layers, not exactly those that were chosen.
    """
    sizes = np.array([p.size for p in found])
    wanted = {i for i, p in enumerate(found) if p.module in set(chosen)}
    rng = np.random.default_rng(seed)
    draws = [rng.permutation(len(found))[: len(wanted)] for _ in range(_DRAWS)]
    others = [draw for draw in draws if set(draw.tolist()) != wanted]
    target = sizes[list(wanted)].sum()
    best = min(others, key=lambda draw: abs(int(sizes[draw].sum() - target)))
    return [found[i].module for i in sorted(best.tolist())]


def adapted(model: nn.Module, modules: Sequence[str], *, rank: int, seed: int) -> nn.Module:
    """A copy of a model with LoRA on some layers, of which only the adapters train.

    Args:
        model: The model; it is not changed.
        modules: Names of linear layers.
        rank: Rank of the adapters.
        seed: Of their first values; they start as no change.

    Returns:
        The copy.
    """
    from peft import LoraConfig, inject_adapter_in_model

    copied = copy.deepcopy(model)
    layers = linear_layers(copied)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        # Text is a regular expression over whole names; a list would also match their endings.
        target_modules=f"(?:{'|'.join(map(re.escape, modules))})",
        fan_in_fan_out=all(layers[name].transposed for name in modules),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # It sets fan_in_fan_out right itself where layers of both kinds are adapted.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
        torch.manual_seed(seed)
        return inject_adapter_in_model(config, copied)

"""Whatever reads weights refuses a model whose weights are elsewhere, before any work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fisherscope as fs
from oracles.processes import ranks, split, values

TAKE_THEM = {
    "plan",
    "estimate",
    "estimate_into",
    # These estimate, and look at no weight by themselves.
    "FisherBase.update_fisher_ema",
    "BombshellMetrics.update_fisher_ema",
    "ModularityMetrics.update_fisher_ema",
}
RESULTS = {"Merged"}
"""Holds the model that it is the result of."""


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, class, and method of a public class."""
    for name in sorted(set(fs.__all__)):
        thing = getattr(fs, name)
        if not callable(thing) or thing.__name__ != name:  # another name of the same
            continue
        yield name, thing
        if isinstance(thing, type):
            for method, function in inspect.getmembers(thing, inspect.isfunction):
                if not method.startswith("_"):
                    yield f"{name}.{method}", function


def with_models() -> dict[str, tuple[Callable[..., Any], list[inspect.Parameter]]]:
    found = {}
    for name, function in callables():
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # an exception's class
            continue
        if any("Module" in str(p.annotation) for p in parameters) and name not in RESULTS:
            found[name] = (function, parameters)
    return found


def given(model: nn.Module, annotation: str) -> Any:
    if annotation.startswith("Mapping"):
        return {"whole": nn.Linear(4, 3), "other": model}
    return [nn.Linear(4, 3), model] if annotation.startswith("Sequence") else model


def refusals(model: nn.Module) -> dict[str, str]:
    """What each function says of each of its models, where nothing else of its input is right."""
    said = {}
    for name, (function, parameters) in with_models().items():
        if name in TAKE_THEM:
            continue
        needed = {p.name: None for p in parameters if p.default is p.empty and p.kind < 4}
        needed = {k: v for k, v in needed.items() if k not in {"args", "options", "kwargs"}}
        for p in parameters:
            if "Module" in str(p.annotation):
                try:
                    function(**{**needed, p.name: given(model, str(p.annotation))})
                except Exception as error:
                    said[f"{name}({p.name})"] = f"{type(error).__name__}: {error}"
                else:
                    said[f"{name}({p.name})"] = "nothing"
    return said


def sharded(rank: int) -> dict[str, str]:
    del rank
    return refusals(split(nn.Linear(4, 3)))


def refused(said: dict[str, str], how: str) -> None:
    assert len(said) > 30
    for call, text in said.items():
        name = call.partition("(")[0].rpartition(".")[2]
        assert text.startswith("ParameterError: parameter 'weight'"), (call, text)
        assert how in text and f"{name}() can't read it" in text and "use the model whole" in text


# Planted: one function without its guard (`sparsity`), one whose guard does not look into lists
# (`merge`): zeros, parts of tensors, or an error from deep inside, and hangs of split models.
def test_models_without_weights():
    with torch.device("meta"):
        refused(refusals(nn.Linear(4, 3)), "offloaded")


def test_split_models():
    for said in values(ranks(1, sharded)):
        refused(said, "split over ranks")


# Would catch: gradients of a split model, divided by a Fisher as if they were whole.
def test_tensors():
    fisher = fs.estimate(nn.Linear(4, 3), (torch.ones(2, 4), torch.tensor([0, 1])), progress=False)
    gradients = {name: total.to("meta") for name, total in fisher.sums.items()}
    with pytest.raises(fs.ParameterError, match=r"precondition\(\) can't read it"):
        fs.precondition(gradients, fisher)


def test_the_list_is_of_what_exists():
    assert set(with_models()) >= TAKE_THEM
    assert {"merge", "EWC", "importance", "UnifiedModelAnalyzer.analyze"} <= set(with_models())

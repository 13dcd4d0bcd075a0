"""Wrong types and contradictions are named, whichever function they are given to."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import fisherscope as fs
from fisherscope.analysis.spectrum.functions import log_determinant
from fisherscope.arguments import (
    check_choice,
    check_list,
    check_mapping,
    check_number,
    check_tensors,
    check_whole,
    size_in_bytes,
)
from fisherscope.partition import Budget


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int64(1)])
def test_numbers(value):
    check_number("x", value, low=0.5, most=1)


@pytest.mark.parametrize(
    ("value", "bounds", "said"),
    [
        ("0.5", {}, "x='0.5' must be a finite number"),
        (True, {}, "x=True must be a finite number"),
        (None, {}, "x=None must be a finite number"),
        (1j, {}, "x=1j must be a finite number"),
        (math.nan, {}, "x=nan must be a finite number"),
        (math.inf, {"above": 0}, "x=inf must be a finite number above 0"),
        (0, {"above": 0}, "x=0 must be a finite number above 0"),
        (-1, {"low": 0, "below": 1}, "x=-1 must be a finite number of at least 0 and below 1"),
        (1, {"low": 0, "below": 1}, "x=1 must be a finite number of at least 0 and below 1"),
        (2, {"most": 1}, "x=2 must be a finite number of at most 1"),
    ],
)
def test_numbers_out_of_range(value, bounds, said):
    with pytest.raises(fs.ParameterError, match=f"^{re.escape(said)}"):
        check_number("x", value, **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "said"),
    [
        (2.5, {"low": 1}, "k=2.5 must be a whole number of at least 1"),
        (2.0, {"low": 1}, "k=2.0 must be"),
        (True, {"low": 1}, "k=True must be"),
        (0, {"low": 1}, "k=0 must be"),
        (9, {"low": 1, "most": 8}, "k=9 must be a whole number between 1 and 8"),
        ("3", {"low": 1}, "k='3' must be"),
    ],
)
def test_whole_numbers(value, bounds, said):
    check_whole("k", np.int64(4), **bounds)
    with pytest.raises(fs.ParameterError, match=f"^{re.escape(said)}"):
        check_whole("k", value, **bounds)


def test_the_other_kinds():
    check_choice("scope", "tensor", ("global", "tensor"))
    for wrong in ("all", ["global"], {"global": 1}, None):
        with pytest.raises(fs.ParameterError, match=r"^scope=.*is unknown; use one of \['global'"):
            check_choice("scope", wrong, ("global", "tensor"))
    check_list("tasks", ["a"], "a list of names")
    check_list("tasks", ("a",), "a list of names")
    for wrong in ("a", 3, {"a": 1}, nn.Sequential(nn.Linear(1, 1)), torch.zeros(2), None):
        with pytest.raises(fs.ParameterError, match=r"^tasks is .*pass a list of names"):
            check_list("tasks", wrong, "a list of names")
    check_mapping("tasks", {}, "{name: data}")
    check_tensors("g", {"w": torch.zeros(2)}, "{name: gradient}")
    for wrong in ("a", [1], None):
        with pytest.raises(fs.ParameterError, match=r"^g is .*pass {name: gradient}"):
            check_tensors("g", wrong, "{name: gradient}")
    with pytest.raises(fs.ParameterError, match="^g holds a list under 'w', not a tensor"):
        check_tensors("g", {"w": [1.0]}, "{name: gradient}")
    with pytest.raises(fs.ParameterError, match="^g names 0, a int; names are text"):
        check_tensors("g", {0: torch.zeros(2)}, "{name: gradient}")


def _room():
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    data = torch.randn(10, 3), torch.randint(2, (10,))
    store = fs.FisherStore()
    metrics = fs.BombshellMetrics(store)
    metrics.update_fisher_ema(model, data, "a")
    metrics.update_fisher_ema(other, data, "b")
    moved = fs.estimate(nn.Linear(3, 2), data, progress=False)
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    return {
        "model": model,
        "models": [model, other],
        "data": data,
        "fisher": store["a"],
        "fishers": [store["a"], store["b"]],
        "moved": moved,
        "g": gradients,
        "metrics": metrics,
        "modularity": fs.ModularityMetrics(store),
        "analyzer": fs.UnifiedModelAnalyzer(),
    }


ROOM = _room()
M, F, D, G = (ROOM[name] for name in ("model", "fisher", "data", "g"))
BOTH, METRICS = ROOM["models"], ROOM["metrics"]
MODULARITY, ANALYZER = ROOM["modularity"], ROOM["analyzer"]

WRONG = {
    # A number that is text, a flag or not whole.
    "masks sparsity": (lambda: fs.masks(F, "0.5"), "sparsity='0.5' must be"),
    "masks sparsity nan": (lambda: fs.masks(F, math.nan), "sparsity=nan must be"),
    "masks seed": (lambda: fs.masks(F, 0.5, method="random", seed=0.5), "seed=0.5 must be"),
    "masks method": (lambda: fs.masks(F, 0.5, method=["obd"]), "method=['obd'] is unknown"),
    "solve damping": (lambda: F.solve(G, damping="x"), "damping='x' must be"),
    "solve power": (lambda: F.solve(G, damping=1.0, power="x"), "power='x' must be"),
    "logdet": (lambda: F.logdet(damping=None), "damping=None must be"),
    "spectral damping": (lambda: log_determinant(M, damping="x"), "damping='x' must be"),
    "precondition damping": (lambda: fs.precondition(G, F, damping="x"), "damping='x' must be"),
    "precondition power": (lambda: fs.precondition(G, F, power="x"), "power='x' must be"),
    "decay": (lambda: fs.FisherEMA("0.9"), "decay='0.9' must be"),
    "temperature": (lambda: fs.uncertainty(M, F, D, temperature="x"), "temperature='x' must be"),
    "prior": (
        lambda: fs.uncertainty(M, F, D, prior_precision=[1.0]),
        "prior_precision=[1.0] must be 'marglik', 'grid' or a finite number of at least 0",
    ),
    "observations": (lambda: fs.uncertainty(M, F, D, observations="9"), "observations='9' must be"),
    "candidates": (lambda: fs.uncertainty(M, F, D, candidates="01"), "candidates='01'"),
    "k": (lambda: fs.top_coordinates(F, k=2.5), "k=2.5 must be a whole number between 1 and 8"),
    "fraction": (lambda: fs.top_coordinates(F, fraction="x"), "fraction='x' must be"),
    "scope": (lambda: fs.top_coordinates(F, k=1, scope=["tensor"]), "scope=['tensor'] is unknown"),
    "directions": (lambda: fs.top_directions(F, k=2.5), "k=2.5 must be a whole number"),
    "percentile": (
        lambda: METRICS.get_top_fisher_directions("a", percentile="90"),
        "percentile='90' must be a finite number of at least 0 and below 100",
    ),
    "learning_rate": (
        lambda: fs.step_damage(M, D, D, learning_rate="x"),
        "learning_rate='x' must be",
    ),
    "fraction of a step": (lambda: fs.descent_step(M, D, fraction="x"), "fraction='x' must be"),
    "sparsity of an analysis": (
        lambda: ANALYZER.analyze(M, {"a": D}, sparsity="0.5"),
        "sparsity='0.5' must be",
    ),
    "importance": (lambda: fs.importance(F, per=["layer"]), "per=['layer'] is unknown"),
    "cleanup": (lambda: METRICS.cleanup_fisher_ema(max_tasks=1.5), "max_tasks=1.5 must be"),
    "merge floor": (lambda: fs.merge(BOTH, ROOM["fishers"], floor="x"), "floor='x' must be"),
    "merge iterations": (
        lambda: fs.merge(BOTH, ROOM["fishers"], iterations=True),
        "iterations=True must be",
    ),
    "merge method": (lambda: fs.merge(BOTH, method=["mean"]), "method=['mean'] is unknown"),
    # Something else than a mapping or a list.
    "gradients": (
        lambda: fs.precondition(list(G.values()), F),
        "gradients is a list; pass {parameter name: gradient}",
    ),
    "a gradient": (
        lambda: fs.precondition(G | {"weight": [1.0]}, F),
        "gradients holds a list under 'weight', not a tensor",
    ),
    "gradient": (
        lambda: fs.damage_index(F, list(G.values())),
        "gradient is a list; pass {parameter name: gradient}",
    ),
    "delta": (lambda: fs.damage(M, D, list(G.values())), "delta is a list; pass"),
    "vector": (lambda: F.quadratic(list(G.values())), "the vector is a list; pass"),
    "masks": (lambda: fs.prune(M, list(G.values())), "masks is a list; pass"),
    "overlap": (lambda: fs.overlap([], {}), "masks_a is a list; pass"),
    "merge weights": (
        lambda: fs.merge(BOTH, method="mean", weights=0.5),
        "weights is a float; pass one number per model",
    ),
    "a weight": (
        lambda: fs.merge(BOTH, method="mean", weights=["1", "2"]),
        "weights[0]='1' must be a finite number",
    ),
    "merge models": (
        lambda: fs.merge(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), method="mean"),
        "models is a Sequential; pass a list of models",
    ),
    "merge fishers": (lambda: fs.merge(BOTH, F), "fishers is a DiagonalFisher; pass a list"),
    "tasks": (
        lambda: METRICS.fisher_weighted_merge(BOTH, "ab"),
        "tasks is a str; pass a list of task names, one per model",
    ),
    "metrics": (
        lambda: METRICS.compare_task_fisher("a", "b", "cosine", across_models=True),
        "metrics is a str; pass a list of metrics",
    ),
    "keep_tasks": (lambda: METRICS.cleanup_fisher_ema("a"), "keep_tasks is a str; pass a list"),
    "analyzed models": (
        lambda: ANALYZER.analyze(BOTH, {"a": D}),
        "models is a list; pass a model, or {name: model}",
    ),
    "an analyzed model": (
        lambda: ANALYZER.analyze({"a": "gpt2"}, {"a": D}),
        "models['a'] is a str, not a torch module",
    ),
    "analyzed tasks": (lambda: ANALYZER.analyze(M, [D, D]), "tasks is a list; pass {name: data}"),
    "text as tasks": (lambda: ANALYZER.analyze(M, "gpt"), "tasks is a str; pass {name: data}"),
    # The message speaks of what the caller wrote.
    "k and percentile": (
        lambda: METRICS.get_top_fisher_directions("a", k=3, percentile=90),
        "give exactly one of k and percentile",
    ),
    "counts": (
        lambda: METRICS.fisher_weighted_merge(BOTH, ["a"]),
        "there are 2 models, but 1 tasks",
    ),
    # Before anything is computed, and before anything is removed.
    "task": (lambda: METRICS.update_fisher_ema(None, None, 3), "task 3 is not text"),
    "a stored Fisher of other weights": (
        lambda: MODULARITY.compute_fisher_weighted_damage(M, D, D, task_A="b"),
        "the Fisher was estimated at other weights",
    ),
    "a Fisher of other weights": (
        lambda: fs.step_damage(M, D, D, fisher=ROOM["moved"]),
        "the Fisher was estimated at other weights",
    ),
    "no Fisher": (lambda: fs.step_damage(M, D, D, fisher=G), "fisher is a dict"),
    "kept beyond a limit": (
        lambda: METRICS.cleanup_fisher_ema(["a", "b"], max_tasks=1),
        "keep_tasks names 2 tasks, more than max_tasks=1",
    ),
    "kept beyond the memory": (
        lambda: METRICS.cleanup_fisher_ema(["a"], memory_limit=1),
        "bytes, more than memory_limit=1",
    ),
}


# Catches: raw TypeErrors from deep inside, a text that is taken letter by letter, a module that is
# taken child by child, a message about an argument that nobody passed.
@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_named(what):
    call, said = WRONG[what]
    with pytest.raises(fs.FisherscopeError, match=re.escape(said)):
        call()
    assert set(METRICS.store) == {"a", "b"}


# Would catch: bytes taken for bits (8gb as 1 GB), numbers that only look like numbers, powers of
# 1024 for 1000.
@pytest.mark.parametrize(
    ("given", "size"),
    [
        (None, None), (0, 0), (8e9, 8 * 10**9), ("8GB", 8 * 10**9), ("8gb", 8 * 10**9),
        ("40kb", 40_000), ("1.5 G", 15 * 10**8), ("2GiB", 2**31), ("8000000000", 8 * 10**9),
        ("1TB", 10**12),
    ],
)  # fmt: skip
def test_sizes(given, size):
    assert size_in_bytes("memory_limit", given) == size


@pytest.mark.parametrize("given", [True, -1, float("nan"), "much", "", "-5GB", "5 PB", [1]])
def test_what_is_no_size(given):
    with pytest.raises(fs.ParameterError, match="memory_limit=.* is no size"):
        size_in_bytes("memory_limit", given)


@pytest.mark.parametrize("given", [3, "", " "])
def test_what_is_no_folder(given):
    with pytest.raises(fs.ParameterError, match="offload_folder=.* is no folder"):
        Budget.of(None, given)

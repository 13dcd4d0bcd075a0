"""Squared gradients taken out of optimizers."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn, optim

import fisherscope as fs
from oracles import models

N, D, K = 12, 4, 3


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(D, K)


def train(model, optimizer, count=5, *, clip=None, scale=1.0):
    """Steps on batches of a regression; the gradients that the optimizer was given."""
    g = torch.Generator().manual_seed(1)
    given = []
    for _ in range(count):
        x, y = torch.randn(N, D, generator=g), torch.randn(N, K, generator=g)
        optimizer.zero_grad()
        (scale * (model(x) - y).square().mean()).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        given.append({n: p.grad.clone() for n, p in model.named_parameters()})
        optimizer.step()
    return given


def averaged(given, beta, name):
    """The decayed mean of squares, weights adding up to one, from nothing but the gradients."""
    weights = np.array([(1 - beta) * beta ** (len(given) - 1 - t) for t in range(len(given))])
    squares = np.array([step[name].double().numpy() ** 2 for step in given])
    return np.tensordot(weights / weights.sum(), squares, 1)


# -- closed forms -------------------------------------------------------------------------

AVERAGING = {
    "adam": (lambda p: optim.Adam(p, lr=0.05, betas=(0.9, 0.97)), 0.97),
    "adam-default": (lambda p: optim.Adam(p), 0.999),
    "adam-loop": (lambda p: optim.Adam(p, betas=(0.9, 0.97), foreach=False), 0.97),
    "adam-foreach": (lambda p: optim.Adam(p, betas=(0.9, 0.97), foreach=True), 0.97),
    "adam-fused": (lambda p: optim.Adam(p, betas=(0.9, 0.97), fused=True), 0.97),
    "adam-maximize": (lambda p: optim.Adam(p, betas=(0.9, 0.97), maximize=True), 0.97),
    "adam-forgets": (lambda p: optim.Adam(p, betas=(0.9, 0.0)), 0.0),
    "amsgrad": (lambda p: optim.Adam(p, lr=0.1, betas=(0.9, 0.5), amsgrad=True), 0.5),
    "epsilon": (lambda p: optim.Adam(p, betas=(0.9, 0.97), eps=10.0), 0.97),
    "adamw": (lambda p: optim.AdamW(p, betas=(0.9, 0.97), weight_decay=0.5), 0.97),
    "nadam": (lambda p: optim.NAdam(p, betas=(0.9, 0.97)), 0.97),
    "radam": (lambda p: optim.RAdam(p, betas=(0.9, 0.97)), 0.97),
    "rmsprop": (lambda p: optim.RMSprop(p, alpha=0.9), 0.9),
    "rmsprop-centered": (lambda p: optim.RMSprop(p, alpha=0.9, centered=True, momentum=0.9), 0.9),
    "adadelta": (lambda p: optim.Adadelta(p, rho=0.9), 0.9),
}


# Would catch: the accumulator read without its bias taken out, the wrong beta, the maximum of
# amsgrad, the centered moment, epsilon or decoupled decay in the squares.
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("name", AVERAGING)
def test_is_the_decayed_mean_of_squared_gradients(name, steps):
    make, beta = AVERAGING[name]
    model = linear()
    optimizer = make(model.parameters())
    given = train(model, optimizer, steps)
    found = fs.from_optimizer(optimizer, model)
    assert found.steps == {"weight": steps, "bias": steps}
    assert found.beta2 == {"weight": beta, "bias": beta}
    assert found.weight_decay == {"weight": 0.0, "bias": 0.0} and not found.missing
    for tensor, squares in found.diagonal().items():
        np.testing.assert_allclose(squares, averaged(given, beta, tensor), rtol=2e-5)


# The same by the recursion itself, in the shape in which Adam writes it.
def test_the_accumulator_is_adams_own_recursion():
    model = linear()
    optimizer = optim.Adam(model.parameters(), betas=(0.9, 0.8))
    given = train(model, optimizer, 4)
    v = torch.zeros(K, D)
    for step in given:
        v = 0.8 * v + 0.2 * step["weight"] ** 2
    found = fs.from_optimizer(optimizer, model)
    torch.testing.assert_close(found.accumulated["weight"], v)
    torch.testing.assert_close(found.diagonal()["weight"], v / (1 - 0.8**4))


# Would catch: a correction that is only right for one beta: with a constant gradient every mean
# is its square, however slowly the optimizer forgets.
@pytest.mark.parametrize("beta", [0.5, 0.999, 0.999999])
@pytest.mark.parametrize("steps", [1, 7])
def test_constant_gradients_give_their_square(beta, steps):
    model = linear()
    optimizer = optim.AdamW(model.parameters(), betas=(0.9, beta))
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, -0.3)
        optimizer.step()
    for squares in fs.from_optimizer(optimizer, model).diagonal().values():
        torch.testing.assert_close(squares, torch.full_like(squares, 0.09), rtol=2e-3, atol=0)


# Would catch: Adagrad's sum taken for a mean, its start value for squared gradients.
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_adagrad_adds_up(start):
    model = linear()
    optimizer = optim.Adagrad(model.parameters(), initial_accumulator_value=start)
    with pytest.raises(fs.ParameterError, match="has not stepped 'weight', 'bias'"):
        fs.from_optimizer(optimizer, model)
    given = train(model, optimizer, 5)
    found = fs.from_optimizer(optimizer, model)
    mean = np.mean([step["weight"].numpy() ** 2 for step in given], axis=0)
    np.testing.assert_allclose(found.diagonal()["weight"], mean, rtol=1e-4, atol=1e-7)
    assert found.beta2 == {"weight": None, "bias": None} and found.window("bias") == 5
    assert found.to_frame()["beta2"].isna().all()


# -- traps --------------------------------------------------------------------------------


# Would catch: the claim that weight decay is never in the squares: Adam adds an L2 penalty to
# the gradient before it squares, AdamW does not.
@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_weight_decay_is_in_the_squares_of_adam_only(kind):
    plain, decayed = linear(), linear()
    runs = []
    for model, factor in ((plain, 0.0), (decayed, 0.7)):
        optimizer = kind(model.parameters(), lr=0.0, weight_decay=factor)
        train(model, optimizer, 3)
        runs.append(fs.from_optimizer(optimizer, model))
    same = torch.allclose(runs[0].diagonal()["weight"], runs[1].diagonal()["weight"])
    assert same == (kind is optim.AdamW)
    assert runs[1].weight_decay["weight"] == (0.0 if same else 0.7)
    assert ("weight decay" in runs[1].what) != same and "weight decay" not in runs[0].what


def test_decoupled_decay_is_not_reported():
    model = linear()
    optimizer = optim.NAdam(model.parameters(), weight_decay=0.1, decoupled_weight_decay=True)
    train(model, optimizer)
    assert set(fs.from_optimizer(optimizer, model).weight_decay.values()) == {0.0}


# Documents what no reading can undo: clipping and the scale of the loss are in the squares.
def test_clipping_and_the_scale_of_the_loss_show():
    found = {}
    for name, options in {"plain": {}, "clipped": {"clip": 0.01}, "scaled": {"scale": 3.0}}.items():
        model = linear()
        optimizer = optim.Adam(model.parameters(), lr=0.0)
        train(model, optimizer, 4, **options)
        squares = fs.from_optimizer(optimizer, model).diagonal()
        found[name] = sum(float(s.sum()) for s in squares.values())
    assert found["clipped"] == pytest.approx(0.01**2, rel=1e-3) and found["plain"] > 1e-3
    assert found["scaled"] == pytest.approx(9 * found["plain"], rel=1e-4)


# Would catch: views of the optimizer's own tensors, which the next step would change, or a look
# at the state that leaves an entry behind (it is a defaultdict).
def test_a_snapshot_that_leaves_the_optimizer_alone():
    model = nn.ModuleDict({"used": linear(), "idle": linear()})
    optimizer = optim.AdamW(model.parameters())
    train(model["used"], optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    found = fs.from_optimizer(optimizer, model)
    kept = {name: v.clone() for name, v in found.accumulated.items()}
    found.diagonal()["used.weight"].zero_()
    after = optimizer.state_dict()
    assert after["state"].keys() == before["state"].keys()
    assert len(optimizer.state) == 2
    train(model["used"], optimizer, 2)
    assert all(torch.equal(found.accumulated[name], v) for name, v in kept.items())
    assert found.missing == dict.fromkeys(["idle.weight", "idle.bias"], "never had a gradient")


# Would catch: one beta or one count of steps taken for all.
def test_groups_and_steps_of_their_own():
    model = nn.ModuleDict({"a": linear(), "b": linear(1)})
    optimizer = optim.AdamW([
        {"params": model["a"].parameters(), "betas": (0.9, 0.5)},
        {"params": model["b"].parameters(), "betas": (0.8, 0.9)},
    ])
    first = train(model["a"], optimizer, 3)
    model["a"].zero_grad()
    second = train(model["b"], optimizer, 5)
    found = fs.from_optimizer(optimizer, model)
    assert found.steps == {"a.weight": 3, "a.bias": 3, "b.weight": 5, "b.bias": 5}
    assert found.beta2["a.bias"] == 0.5 and found.beta2["b.bias"] == 0.9
    for name, given, beta in (("a", first, 0.5), ("b", second, 0.9)):
        squares = found.diagonal()[f"{name}.weight"]
        np.testing.assert_allclose(squares, averaged(given, beta, "weight"), rtol=1e-5)
    assert found.window("a.bias") == 2 and found.window("b.bias") == 5
    assert "last 2–5 steps" in found.what


def test_the_table_and_the_dictionary():
    model = linear()
    optimizer = optim.AdamW(model.parameters(), betas=(0.9, 0.5))
    train(model, optimizer, 4)
    found = fs.from_optimizer(optimizer, model)
    frame = found.to_frame().set_index("tensor")
    assert list(frame.index) == ["weight", "bias"]
    squares = found.diagonal()["weight"]
    assert frame.loc["weight", "trace"] == pytest.approx(float(squares.sum()), rel=1e-5)
    assert frame.loc["weight", "mean"] == pytest.approx(float(squares.mean()), rel=1e-5)
    assert tuple(frame.loc["weight", ["n_parameters", "steps", "window"]]) == (K * D, 4, 2)
    text = json.dumps(found.to_dict())
    assert "not a Fisher" in text and "accumulated" not in text
    assert not isinstance(found, fs.Fisher) and "not a Fisher" in repr(found)


def test_half_precision_is_widened():
    model = linear().bfloat16()
    optimizer = optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert fs.from_optimizer(optimizer, model).diagonal()["bias"].dtype == torch.float32
    model = linear().double()
    optimizer = optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert fs.from_optimizer(optimizer, model).diagonal()["bias"].dtype == torch.float64


# -- which parameters ---------------------------------------------------------------------


# Would catch: a tied tensor listed twice, or lost under its second name.
@pytest.mark.parametrize("selection", [None, "lm_head.weight"])
def test_a_tied_tensor_is_there_once(selection):
    model = models.fresh("llama-tied").model
    optimizer = optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found = list(fs.from_optimizer(optimizer, model, parameters=selection).accumulated)
    names = [name for name, _ in model.named_parameters()]
    assert found == (names if selection is None else ["model.embed_tokens.weight"])


# Would catch: the frozen weights below an adapter refused, or given as zeros.
def test_a_model_with_adapters():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(models.fresh("gpt2").model, LoraConfig(target_modules=["c_attn"]))
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.AdamW(adapters)
    for parameter in adapters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found = fs.from_optimizer(optimizer, model)
    assert len(found.accumulated) == len(adapters)
    assert all("lora_" in name for name in found.accumulated)
    assert set(found.missing.values()) == {"frozen, not in the optimizer"}
    assert len(found.missing) + len(adapters) == len(list(model.parameters()))
    layer = fs.from_optimizer(optimizer, model, parameters="*h.1.*lora*")
    assert all(".h.1." in name for name in layer.accumulated) and not layer.missing
    with pytest.raises(fs.ParameterError, match="does not step .*wte.weight"):
        fs.from_optimizer(optimizer, model, parameters=["*lora*", "*wte.weight"])


# Would catch: trainable weights that nobody trains left out without a word, explicit requests
# turned into "missing", a model of the same shape taken for the one that is trained.
def test_parameters_that_the_optimizer_does_not_have():
    model = nn.ModuleDict({"a": linear(), "b": linear(1)})
    optimizer = optim.AdamW(model["a"].parameters())
    train(model["a"], optimizer, 2)
    with pytest.raises(fs.ParameterError, match=r"AdamW does not step 'b.weight', 'b.bias': pass"):
        fs.from_optimizer(optimizer, model)
    assert list(fs.from_optimizer(optimizer, model, parameters="a.*").steps) == [
        "a.weight",
        "a.bias",
    ]
    model["b"].requires_grad_(False)
    assert set(fs.from_optimizer(optimizer, model).missing) == {"b.weight", "b.bias"}
    with pytest.raises(fs.ParameterError, match="does not step 'b.bias'"):
        fs.from_optimizer(optimizer, model, parameters="*bias")
    with pytest.raises(fs.ParameterError, match="does not step 'a.weight'"):
        fs.from_optimizer(optimizer, copy.deepcopy(model))
    with pytest.raises(fs.ParameterError, match="no parameter matches 'c.*'"):
        fs.from_optimizer(optimizer, model, parameters="c.*")


def test_parameters_without_a_gradient():
    model = nn.ModuleDict({"a": linear(), "b": linear(1)})
    optimizer = optim.AdamW(model.parameters())
    with pytest.raises(fs.ParameterError, match=r"has not stepped 'a.weight'.* yet.*load"):
        fs.from_optimizer(optimizer, model)
    train(model["a"], optimizer, 2)
    with pytest.raises(fs.ParameterError, match="'b.bias' never had a gradient"):
        fs.from_optimizer(optimizer, model, parameters="*.bias")
    with pytest.raises(fs.ParameterError, match="has not stepped 'b.weight', 'b.bias' yet"):
        fs.from_optimizer(optimizer, model, parameters="b.*")


def test_a_state_that_was_loaded():
    model = linear()
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer, 3)
    other = copy.deepcopy(model)
    again = optim.AdamW(other.parameters())
    again.load_state_dict(optimizer.state_dict())
    one, two = fs.from_optimizer(optimizer, model), fs.from_optimizer(again, other)
    assert one.steps == two.steps
    assert torch.equal(one.diagonal()["weight"], two.diagonal()["weight"])


# -- which optimizers ---------------------------------------------------------------------


# Would catch: wrappers refused, or read for their own state.
def test_wrappers_are_opened():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = linear()
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    expected = fs.from_optimizer(optimizer, model).diagonal()["weight"]
    try:
        prepared = Accelerator(cpu=True).prepare(optimizer)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert prepared is not optimizer
    for wrapper in (prepared, SimpleNamespace(optimizer=prepared)):
        found = fs.from_optimizer(wrapper, model)
        assert found.optimizer == "AdamW" and torch.equal(found.diagonal()["weight"], expected)


class MyAdam(optim.Adam):
    pass


class AdamW8bit(optim.Optimizer):
    """The state of bitsandbytes' optimizer of that name."""

    def __init__(self, params):
        super().__init__(params, {"betas": (0.9, 0.999)})
        for group in self.param_groups:
            for p in group["params"]:
                codes = torch.zeros_like(p, dtype=torch.uint8)
                self.state[p] = {"step": 3, "state1": codes, "state2": codes}


AdamW8bit.__module__ = "bitsandbytes.optim.adamw"


def test_a_subclass_counts_as_its_parent():
    model = linear()
    optimizer = MyAdam(model.parameters())
    train(model, optimizer, 2)
    assert fs.from_optimizer(optimizer, model).optimizer == "MyAdam"


# Would catch: exp_inf or a row sum squared or reshaped into something that looks like a diagonal,
# a KeyError instead of the name of the optimizer and the way out.
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (optim.Adamax, "Adamax keeps a decayed maximum"),
        (optim.Adafactor, "Adafactor keeps only sums over rows"),
        (lambda p: optim.SparseAdam(list(p)), "SparseAdam forgets only where"),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9), "SGD keeps no mean of squared gradients"),
        (optim.Rprop, "Rprop keeps no mean"),
        (AdamW8bit, "AdamW8bit keeps its second moment quantised .*bitsandbytes"),
    ],
)
def test_optimizers_without_a_diagonal_are_refused(make, said):
    model = linear()
    optimizer = make(model.parameters())
    with pytest.raises(fs.ParameterError, match=said + ".*AdamW.*estimate"):
        fs.from_optimizer(optimizer, model)


@pytest.mark.parametrize("thing", [None, {}, "adam", linear()], ids=str)
def test_what_is_no_optimizer(thing):
    with pytest.raises(fs.ParameterError, match="is no optimizer: pass the torch.optim"):
        fs.from_optimizer(thing, linear())


# Would catch: states of reduced rank (GaLore), quantised or sharded ones read as if they were
# the parameter's.
@pytest.mark.parametrize(
    "kept",
    [torch.zeros(2, D), torch.zeros(K, D, dtype=torch.uint8), nn.Parameter(torch.zeros(K, D))],
    ids=["rank", "quantised", "subclass"],
)
def test_states_of_another_kind_are_refused(kept):
    model = linear()
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    optimizer.state[model.weight]["exp_avg_sq"] = kept
    with pytest.raises(fs.ParameterError, match="keeps 'weight' as .*reduced rank.*estimate"):
        fs.from_optimizer(optimizer, model)


def test_broken_squares_are_named():
    model = linear()
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    optimizer.state[model.bias]["exp_avg_sq"][1] = torch.inf
    with pytest.raises(fs.NonFiniteError, match="'bias' are not finite"):
        fs.from_optimizer(optimizer, model)

"""Decides what covers which parameter by comparing with plain autograd on two examples.

A rule is trusted because it was right on this very model: two examples of different
content go through the engine together and through autograd one by one. That finds what no
table of classes can: a weight used outside its module, a batch that is broadcast, a module
whose class overrides what it inherits. Whatever disagrees takes the slow exact path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.data import Example
from fisherscope.engine.away import is_away, owners
from fisherscope.engine.coverage import Coverage, bind
from fisherscope.engine.formats import coarsest, first_scale, formats_used, next_scale
from fisherscope.engine.head import FusedHead, Head, PlainHead, call_model, make_batch
from fisherscope.engine.layers import UnexpectedShapeError
from fisherscope.engine.observer import Observer
from fisherscope.engine.quiet import undisturbed
from fisherscope.engine.scores import Score
from fisherscope.engine.sharing import SharedInputs
from fisherscope.engine.slow import one_by_one
from fisherscope.engine.sweep import Labelling, Sweep
from fisherscope.likelihoods import Likelihood

# Relative error of the summed squares that rounding explains, and the share of the largest
# root-mean-square score below which a score is rounding noise itself.
_TOLERANCE = {torch.float64: (1e-6, 1e-9), torch.float32: (1e-3, 1e-5)}
_LOW_PRECISION = (0.2, 3e-3)
_TRIES = 8


def cover(
    model: nn.Module,
    likelihood: Likelihood,
    examples: Sequence[Example],
    requested: dict[str, nn.Parameter],
) -> Coverage:
    """Cover every requested parameter exactly.

    Args:
        model: The model; it comes back untouched.
        likelihood: Its likelihood.
        examples: Labelled examples; two short ones of different content are used.
        requested: Name to parameter.

    Returns:
        A coverage that agreed with autograd on two examples.
    """
    with undisturbed(model), torch.no_grad(), formats_used(model) as formats:
        width = call_model(model, make_batch(model, examples[:1])).shape[-1]
    likelihood.check_width(examples, width)
    scale, dtype = first_scale(formats), coarsest(formats)
    pair, reference = _reference(model, likelihood, examples, requested, scale)
    while reference is None and (lower := next_scale(scale)) is not None:
        scale = lower
        pair, reference = _reference(model, likelihood, examples, requested, scale)
    with undisturbed(model):
        single = _depends_on_batch(model, likelihood, pair, dtype)
        head = _head(model, likelihood, pair[0], requested)
    if reference is None:
        reason = "the model's scores are not finite on the examples tried"
        slow = dict.fromkeys(requested, reason)
        return replace(bind(model, requested, head, slow, single, width), scale=scale)
    slow = {}
    while True:
        coverage = replace(bind(model, requested, head, slow, single, width), scale=scale)
        seen = SharedInputs()
        found, called = _disagreements(model, likelihood, coverage, pair, reference, seen, dtype)
        if not found:
            idle = {n for n in requested if n not in called and n not in coverage.slow}
            if not idle:
                return replace(coverage, shared=seen.groups())
            # Whoever uses them in a later batch might do so behind the module's back.
            slow |= dict.fromkeys(idle, "its module was not called by the examples tried")
        if head.fused and set(found) & set(head.names.values()):
            # The head's own parameters disagree: first see whether it is the fusion.
            head = PlainHead(likelihood)
        else:
            slow.update(found)


def _candidates(likelihood: Likelihood, examples: Sequence[Example]) -> list[Example]:
    """Examples worth trying: more than one token, short, and the first two unlike in length."""
    useful = [e for e in examples if likelihood.tokens(e)]
    useful.sort(key=lambda e: (likelihood.tokens(e) < 2, abs(e.length - 16), e.id))
    other = [e for e in useful[1:] if e.length != useful[0].length][:1]
    return [useful[0], *other, *(e for e in useful[1:] if e not in other)][:_TRIES]


def _reference(
    model: nn.Module,
    likelihood: Likelihood,
    examples: Sequence[Example],
    requested: dict[str, nn.Parameter],
    scale: float | None,
) -> tuple[list[Example], dict[str, Tensor] | None]:
    """Two examples with finite scores, and their summed squares from autograd."""
    candidates = _candidates(likelihood, examples)
    totals: dict[str, Tensor] = {}
    pair: list[Example] = []
    with undisturbed(model):
        for example in candidates:
            batch = make_batch(model, [example])
            labels = [(likelihood.targets(batch), None)]
            (gradients,) = one_by_one(model, likelihood, batch, labels, requested, scale or 1.0)
            if not all(bool(torch.isfinite(g).all()) for g in gradients.values()):
                continue
            for name, g in gradients.items():
                squares = totals.get(name)
                totals[name] = g.square() if squares is None else squares.addcmul_(g, g)
            pair.append(example)
            if len(pair) == 2:
                break
    return (pair, totals) if pair else (candidates[:2], None)


def _depends_on_batch(
    model: nn.Module, likelihood: Likelihood, pair: Sequence[Example], dtype: torch.dtype
) -> bool:
    """Whether the model sees an example differently in a batch than alone."""

    def losses(examples: Sequence[Example]) -> Tensor:
        batch = make_batch(model, examples)
        targets = likelihood.targets(batch)
        loss, _ = PlainHead(likelihood).label_sets(
            call_model(model, batch), targets, (), Observer(()), lambda *_: None
        )
        return loss.double()

    with torch.no_grad():
        alone = torch.cat([losses([example]) for example in pair])
        try:
            together = losses(pair)
        except (RuntimeError, ValueError, TypeError):
            return True
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(dtype, 0.1)
    return not torch.allclose(alone, together, rtol=tolerance, atol=tolerance, equal_nan=True)


def _head(
    model: nn.Module,
    likelihood: Likelihood,
    example: Example,
    requested: dict[str, nn.Parameter],
) -> Head:
    """The fused head if the model's logits are exactly its output embedding's output."""
    plain = PlainHead(likelihood)
    getter = getattr(model, "get_output_embeddings", None)
    module = getter() if callable(getter) and likelihood.tokenwise else None
    if not isinstance(module, nn.Linear):
        return plain
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0], output))

    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            batch = make_batch(model, [example])
            logits = call_model(model, batch)
    finally:
        handle.remove()
    if len(seen) != 1:
        return plain
    hidden, output = seen[0]
    if hidden.dtype != module.weight.dtype:
        return plain  # the model casts one of them, in a way that is not known here
    whole = hidden.shape[:2] == likelihood.targets(batch).shape
    if not whole or output.shape != logits.shape or not torch.equal(output.float(), logits.float()):
        return plain
    places = owners(model, requested).items()
    own = {local: name for (owner, local), name in places if owner == id(module)}
    own_forward = type(module) is nn.Linear and "forward" not in vars(module)
    if not own_forward or is_away(module.weight):
        # It has to be used where it is: in the model.
        return PlainHead(likelihood, frozenset(own.values()))
    expected = F.linear(hidden, module.weight, module.bias)
    if not torch.allclose(expected.float(), output.float(), rtol=1e-4, atol=1e-5):
        return plain
    return FusedHead(likelihood, module, own)


def _disagreements(
    model: nn.Module,
    likelihood: Likelihood,
    coverage: Coverage,
    pair: Sequence[Example],
    reference: dict[str, Tensor],
    seen: SharedInputs,
    dtype: torch.dtype,
) -> tuple[dict[str, str], set[str]]:
    """Names whose squares differ from autograd's, with the reason; and names called at all."""
    fast = [name for name in reference if name not in coverage.slow]
    if not fast:
        return {}, set()
    totals = {name: torch.zeros_like(reference[name]) for name in fast}

    def sink(name: str, score: Score, rows: slice, draw: int) -> None:
        del rows, draw
        score.squares(totals[name])

    without_slow = replace(coverage, slow={})
    sweep = Sweep(model, likelihood, without_slow)
    try:
        with sweep:
            sweep.run(pair, Labelling(), sink, inputs=seen)
    except UnexpectedShapeError as error:
        return error.names, set()
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        # The model ran for autograd, so it is the observation that it does not bear.
        return dict.fromkeys(fast, f"the model fails while it is observed ({error})"), set()
    tolerance, noise = _TOLERANCE.get(dtype, _LOW_PRECISION)
    scale = max(float(r.mean()) for r in reference.values())
    found = {}
    for name in fast:
        error = torch.linalg.vector_norm(totals[name] - reference[name])
        size = torch.linalg.vector_norm(reference[name])
        negligible = max(float(totals[name].mean()), float(reference[name].mean()))
        silent = bool(size) and not bool(totals[name].any())
        if silent or (not error <= tolerance * size and not negligible <= scale * noise**2):
            found[name] = f"its rule disagrees with autograd by {float(error / size):.1e}"
    return found, sweep.observer.called | set(coverage.head.names.values())

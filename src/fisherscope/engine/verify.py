"""Decides what covers which parameter by comparing with plain autograd on two examples.

A rule is trusted because it was right on this very model: two examples of different
content go through the engine together and through autograd one by one. That finds what no
table of classes can: a weight used outside its module, a batch that is broadcast, a module
whose class overrides what it inherits. Whatever disagrees takes the slow exact path.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisherscope.data import Example
from fisherscope.engine.away import is_away, is_sharded, owners
from fisherscope.engine.coverage import Coverage, bind
from fisherscope.engine.formats import coarsest, first_scale, formats_used, next_scale
from fisherscope.engine.head import FusedHead, Head, PlainHead, call_model, make_batch
from fisherscope.engine.layers import UnexpectedShapeError
from fisherscope.engine.mapped import trim
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
_MOST_BYTES = 4 * 2**30


def cover(
    model: nn.Module,
    likelihood: Likelihood,
    examples: Sequence[Example],
    requested: dict[str, nn.Parameter],
    limit: int | None = None,
) -> Coverage:
    """Cover every requested parameter exactly.

    Args:
        model: The model; it comes back untouched.
        likelihood: Its likelihood.
        examples: Labelled examples; two short ones of different content are used.
        requested: Name to parameter.
        limit: Most bytes of gradients and squares at a time: parameters are then looked at in
            parts, with passes of their own. Default: ``None``, 4 GiB.

    Returns:
        A coverage that agreed with autograd on two examples.
    """
    with undisturbed(model), torch.no_grad(), formats_used(model) as formats:
        width = call_model(model, make_batch(model, examples[:1])).shape[-1]
    likelihood.check_width(examples, width)
    scale, dtype = first_scale(formats), coarsest(formats)
    reference = _Reference(
        model, likelihood, _parts(requested, _MOST_BYTES if limit is None else limit), scale
    )
    while not reference.choose(examples) and (lower := next_scale(scale)) is not None:
        scale = reference.scale = lower
    pair = reference.pair or _candidates(likelihood, examples)[:2]
    with undisturbed(model):
        single = _depends_on_batch(model, likelihood, pair, dtype)
        head = _head(model, likelihood, pair[0], requested)
    if not reference.pair:
        reason = "the model's scores are not finite on the examples tried"
        slow = dict.fromkeys(requested, reason)
        return replace(bind(model, requested, head, slow, single, width), scale=scale)
    slow = {}
    while True:
        coverage = replace(bind(model, requested, head, slow, single, width), scale=scale)
        seen = SharedInputs()
        found, called = _disagreements(reference, coverage, seen, dtype)
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


def _parts(requested: dict[str, nn.Parameter], limit: int) -> list[dict[str, nn.Parameter]]:
    """Parameters whose gradients and squares, or two squares, may be there at once."""
    parts: list[dict[str, nn.Parameter]] = [{}]
    used = 0
    for name, parameter in requested.items():
        size = 2 * parameter.numel() * max(4, parameter.element_size())
        if parts[-1] and used + size > limit:
            parts.append({})
            used = 0
        parts[-1][name] = parameter
        used += size
    return parts


class _Reference:
    """Squares from plain autograd, of two examples with finite scores.

    Attributes:
        pair: The examples; empty if there are none.
        scale: What backward passes are multiplied by.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        parts: list[dict[str, nn.Parameter]],
        scale: float | None,
    ):
        self.model, self.likelihood, self.parts, self.scale = model, likelihood, parts, scale
        self.pair: list[Example] = []
        self._kept: dict[str, Tensor] = {}

    def choose(self, examples: Sequence[Example]) -> bool:
        """Look for two examples; whether there is one at least."""
        self.pair, self._kept = [], {}
        for example in _candidates(self.likelihood, examples):
            if all(self._try(example, part) for part in self.parts):
                self.pair.append(example)
            if len(self.pair) == 2:
                break
        return bool(self.pair)

    def squares(self, part: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """Name to summed squares of one of the parts."""
        if self._kept:
            return self._kept
        totals: dict[str, Tensor] = {}
        for example in self.pair:
            _add_squares(totals, self._gradients(example, part))
        return totals

    def _try(self, example: Example, part: dict[str, nn.Parameter]) -> bool:
        gradients = self._gradients(example, part)
        finite = all(bool(torch.isfinite(g).all()) for g in gradients.values())
        if finite and len(self.parts) == 1:
            # What fits at once is kept, rather than made again for every try.
            _add_squares(self._kept, gradients)
        return finite

    def _gradients(self, example: Example, part: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        model, likelihood = self.model, self.likelihood
        with undisturbed(model):
            batch = make_batch(model, [example])
            labels = [(likelihood.targets(batch), None)]
            (gradients,) = one_by_one(model, likelihood, batch, labels, part, self.scale or 1.0)
        return gradients


def _add_squares(totals: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    for name, g in gradients.items():
        known = totals.get(name)
        totals[name] = g.square_() if known is None else known.addcmul_(g, g)


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
            if is_sharded(model):
                raise
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


class _Compared(NamedTuple):
    """The squares of a parameter by its rule, beside those from autograd."""

    error: float  # norm of the difference, in units of the largest square
    size: float  # norm of autograd's, likewise
    mean: float  # of autograd's
    most: float  # the larger of the two means
    silent: bool  # whether the rule found nothing at all

    @classmethod
    def of(cls, mine: Tensor, theirs: Tensor) -> _Compared:
        mean = float(theirs.mean())
        # Squares of squares leave the range of fp32 long before the squares do.
        unit = max((float(t.max()) for t in (mine, theirs) if t.numel()), default=0.0) or 1.0
        scratch = torch.sub(mine, theirs).div_(unit)
        return cls(
            error=float(torch.linalg.vector_norm(scratch)),
            size=float(torch.linalg.vector_norm(torch.div(theirs, unit, out=scratch))),
            mean=mean,
            most=max(float(mine.mean()), mean),
            silent=not bool(mine.any()),
        )


class _Unobservable(Exception):
    """The model ran for autograd, so it is the observation that it does not bear."""


def _compare(
    sweep: Sweep,
    pair: Sequence[Example],
    squares: dict[str, Tensor],
    fast: Collection[str],
    inputs: SharedInputs | None,
) -> dict[str, _Compared]:
    """Autograd's squares beside those of the rules; parameters without a rule beside nothing."""
    totals = {n: torch.zeros_like(s) for n, s in squares.items() if n in fast}

    def sink(name: str, score: Score, rows: slice, draw: int) -> None:
        del rows, draw
        if name in totals:
            score.squares(totals[name])

    if totals:
        try:
            with sweep:
                sweep.run(pair, Labelling(), sink, inputs=inputs)
        except UnexpectedShapeError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            if is_sharded(sweep.model):
                raise  # it may be this rank's alone, and the others wait within their passes
            raise _Unobservable(str(error)) from error
    nothing = torch.zeros(())
    return {n: _Compared.of(totals.get(n, nothing), theirs) for n, theirs in squares.items()}


def _disagreements(
    reference: _Reference, coverage: Coverage, seen: SharedInputs, dtype: torch.dtype
) -> tuple[dict[str, str], set[str]]:
    """Names whose squares differ from autograd's, with the reason; and names called at all."""
    sweep = Sweep(reference.model, reference.likelihood, replace(coverage, slow={}))
    compared: dict[str, _Compared] = {}
    fast = [name for name in coverage.text if name not in coverage.slow]
    inputs: SharedInputs | None = seen
    try:
        for part in reference.parts:
            compared |= _compare(sweep, reference.pair, reference.squares(part), fast, inputs)
            if len(reference.parts) > 1:
                trim()
            if not part.keys().isdisjoint(fast):
                inputs = None  # every further pass would see the same
    except UnexpectedShapeError as error:
        return error.names, set()
    except _Unobservable as error:
        return dict.fromkeys(fast, f"the model fails while it is observed ({error})"), set()
    scale = max(one.mean for one in compared.values())
    tolerance, noise = _TOLERANCE.get(dtype, _LOW_PRECISION)
    found = {}
    for name in fast:
        one = compared[name]
        right = one.error <= tolerance * one.size or one.most <= scale * noise**2
        if (one.size and one.silent) or not right:
            found[name] = f"its rule disagrees with autograd by {_ratio(one.error, one.size):.1e}"
    return found, sweep.observer.called | set(coverage.head.names.values())


def _ratio(error: float, size: float) -> float:
    return error / size if size else math.inf

"""Watches every use of every requested parameter and hands out their scores.

A parameter that is used several times (a tied head, a reused layer) gets all uses of one
backward pass summed before anything is squared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fisherscope.engine.formats import unscaled
from fisherscope.engine.layers import Rule, TappedRule, UnexpectedShapeError
from fisherscope.engine.probe import watch
from fisherscope.engine.scores import EmbeddingScore, MatrixScore, Score, cross_rows
from fisherscope.engine.steps import Steps

Sink = Callable[[str, Score, slice, int], None]


@dataclass(frozen=True)
class BoundRule:
    """A rule together with the names under which its parameters were requested."""

    rule: Rule
    names: dict[str, str]  # local name -> requested name
    layouts: set[str] = field(default_factory=set)  # seen in batches of several examples

    def only(self, part: Rule) -> BoundRule:
        """A part of the rule, under the names of the parameters that it covers.

        Args:
            part: The rule or a part of it.

        Returns:
            A bound rule that shares the layouts seen.
        """
        names = {local: name for local, name in self.names.items() if local in part.kinds}
        return BoundRule(part, names, self.layouts)


@dataclass(frozen=True)
class Extent:
    """Size of the batch in flight: examples, and positions where the input has them."""

    examples: int
    positions: int | None
    tokenwise: bool


def layout(x: Tensor, extent: Extent) -> str:
    """Where a layer's input keeps the examples.

    Routed inputs (a mixture of experts) hold rows of whatever examples chose the layer;
    that such a count equals the batch must not make it look like one.

    Args:
        x: What the layer was called with.
        extent: Size of the batch.

    Returns:
        ``"batch"``, ``"flat"`` or ``"folded"``.

    Raises:
        UnexpectedShapeError: If the rows can't be attributed to examples.
    """
    dims = x.ndim + (0 if x.is_floating_point() else 1)
    first = x.shape[0] if x.ndim else 0
    rows_only = dims <= 2
    if first == extent.examples and not (rows_only and extent.tokenwise):
        return "batch"
    if rows_only and extent.positions and first == extent.examples * extent.positions:
        return "flat"
    if not rows_only and first and first % extent.examples == 0:
        return "folded"
    raise UnexpectedShapeError(
        f"rows of its input {tuple(x.shape)} can't be attributed to {extent.examples} examples"
    )


@dataclass
class _Uses:
    """The uses of one parameter in the current batch."""

    kinds: Counter[str] = field(default_factory=Counter)
    ids: list[Tensor] = field(default_factory=list)
    arrived: dict[str, list[Score]] = field(default_factory=dict)
    cross: dict[int, list[Tensor]] = field(default_factory=dict)


class Observer:
    """Hooks on the modules of a model, active inside ``with``.

    Attributes:
        failures: Requested name to reason, for uses that a rule could not describe; when
            it is not empty after a pass, what the sink received is incomplete.
        called: Names whose module was called at least once.
        scale: What the cotangents are multiplied by; scores are divided by it again.
    """

    def __init__(self, rules: Sequence[BoundRule]):
        self._rules = rules
        self._handles: list[Any] = []
        self._contexts: list[AbstractContextManager[Any]] = []
        self._installed = ExitStack()
        self._anchor = torch.zeros((), requires_grad=True)
        self.failures: dict[str, str] = {}
        self.called: set[str] = set()
        self.scale = 1.0
        self._uses: dict[str, _Uses] = {}
        self._extent = Extent(0, None, False)
        self._batch = 0
        self._counting = False
        self._inputs: Callable[[str, Tensor], None] | None = None
        self._sink: Sink | None = None
        self._error: Exception | None = None
        self._draw = 0

    def __enter__(self) -> Observer:
        for bound in self._rules:
            self._attach(bound)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for bound in self._rules:
            if isinstance(bound.rule, TappedRule):
                bound.rule.tap = None
        self._installed.close()
        while self._contexts:
            self._contexts.pop().__exit__(None, None, None)

    def _attach(self, bound: BoundRule) -> None:
        rule, module = bound.rule, bound.rule.module
        tapped = rule if isinstance(rule, TappedRule) else None

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
            args = rule.before(args, self._batch)
            if tapped is not None:
                context = tapped.during()
                context.__enter__()
                self._contexts.append(context)
            return args, kwargs

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any):
            if tapped is not None:
                self._contexts.pop().__exit__(None, None, None)
                return output
            return self._watch(bound, args or tuple(kwargs.values()), output)

        if tapped is not None:
            tapped.tap = lambda part, args, output: self._watch(bound.only(part), args, output)
            self._installed.enter_context(tapped.installed())
        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(
            module.register_forward_hook(after, with_kwargs=True, always_call=tapped is not None)
        )

    def _watch(self, bound: BoundRule, args: tuple[Any, ...], output: Any) -> Any:
        if not self._batch or not bound.names:
            return output
        try:
            if not isinstance(output, torch.Tensor):
                raise UnexpectedShapeError(f"the module returned a {type(output).__name__}")
            saved = bound.rule.save(args, output)
            self.called.update(bound.names.values())
        except UnexpectedShapeError as error:
            self._fail(bound, error)
            return output
        if self._counting:
            self._count(bound, saved)
        if not torch.is_grad_enabled():
            return output
        anchor = self._anchor
        return watch(output, anchor, lambda s, g: self._score(bound, s, g), *saved)

    def _fail(self, bound: BoundRule, error: Exception) -> None:
        for name in bound.names.values():
            self.failures.setdefault(name, str(error))

    def _count(self, bound: BoundRule, saved: tuple[Tensor, ...]) -> None:
        for local, name in bound.names.items():
            uses = self._uses.setdefault(name, _Uses())
            kind = bound.rule.kinds[local]
            uses.kinds[kind] += 1
            if kind == "embedding":
                uses.ids.append(saved[0])
        name = bound.names.get("weight")
        if self._inputs is not None and name is not None:
            try:
                with torch.no_grad():
                    rows = bound.rule.inputs(saved, self._batch)
                if rows is not None:
                    self._inputs(name, rows)
            except Exception as error:
                self._inputs, self._error = None, error

    # -- one batch ------------------------------------------------------------------

    def forward(
        self,
        extent: Extent,
        run: Callable[[], Any],
        extra: Mapping[str, str] | None = None,
        inputs: Callable[[str, Tensor], None] | None = None,
    ) -> Any:
        """Run a forward pass and count the uses of every parameter in it.

        Args:
            extent: Size of the batch.
            run: Calls the model.
            extra: Name to kind of the parameters that get one more use, delivered
                through :meth:`deliver` by the caller. Default: none.
            inputs: Called with (name, input rows [batch, shared, in]) at every use of a
                weight with a Kronecker form, once however often the backward pass
                recomputes it. Default: ``None``.

        Returns:
            What ``run`` returned.
        """
        self._extent, self._batch, self._counting = extent, extent.examples, True
        self._uses, self.failures, self._inputs = {}, {}, inputs
        for name, kind in (extra or {}).items():
            self._uses.setdefault(name, _Uses()).kinds[kind] += 1
        try:
            output = run()
        finally:
            self._counting, self._inputs = False, None
        self._raise()
        return output

    def backward(
        self,
        output: Tensor,
        cotangent: Tensor,
        draw: int,
        sink: Sink,
        retain: bool,
        steps: Steps | None = None,
    ) -> None:
        """Backpropagate one set of label scores through the graph of the last forward pass.

        Args:
            output: What the forward pass returned, part of the graph.
            cotangent: ``scale`` times the derivative of the summed loss with respect to
                ``output``.
            draw: Number of the set of labels, handed to the sink.
            sink: Receives (name, score, rows of the batch, draw).
            retain: Whether another backward pass over the same graph follows.
            steps: Who takes it. Default: ``None``, this process for itself.
        """
        self._draw = draw

        def walk(keep: bool) -> None:
            with self._handing(sink):
                output.backward(cotangent.to(output.dtype), retain_graph=retain or keep)

        if output.requires_grad:
            (steps or Steps()).backward(walk)
        self._raise()
        with self._handing(sink):
            self._flush()

    @contextmanager
    def _handing(self, sink: Sink) -> Generator[None]:
        self._sink = sink
        try:
            yield
        finally:
            self._sink = None
            self._anchor.grad = None

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    @contextmanager
    def paused(self) -> Generator[None]:
        """Let other calls of the model pass unobserved while the batch is kept.

        Yields:
            Nothing.
        """
        batch, self._batch = self._batch, 0
        try:
            yield
        finally:
            self._batch = batch

    def finish(self) -> None:
        """Forget the batch."""
        self._batch, self._error = 0, None
        self._uses = {}

    # -- scores ---------------------------------------------------------------------

    def _score(self, bound: BoundRule, saved: tuple[Tensor, ...], gradient: Tensor) -> None:
        if self._sink is None or self._error is not None:
            return
        try:
            # Not in the forward pass: a use that gets no gradient may have any layout (DoRA
            # sends a unit matrix through its adapters to learn a norm).
            if self._batch > 1:
                bound.layouts.add(layout(saved[0], self._extent))
                if len(bound.layouts) > 1:
                    raise UnexpectedShapeError("its input changes its layout between batches")
            with torch.no_grad():
                gradient = unscaled(gradient.detach(), self.scale)
                for local, score in bound.rule.scores(saved, gradient, self._batch):
                    if local in bound.names:
                        self._arrive(bound.names[local], score)
        except UnexpectedShapeError as error:
            self._fail(bound, error)
        except Exception as error:
            # Raised behind the pass: other ranks may be waiting for its later messages.
            self._error = error

    def _arrive(self, name: str, score: Score) -> None:
        assert self._sink is not None
        uses = self._uses[name]
        if sum(uses.kinds.values()) == 1:
            self._emit(self._sink, name, score, slice(0, self._batch), self._draw)
            return
        parts = uses.arrived.setdefault(score.kind, [])
        parts.append(score)
        if len(parts) == uses.kinds[score.kind]:
            self._settle(name, uses, score.kind, last=False)

    def _settle(self, name: str, uses: _Uses, kind: str, last: bool) -> None:
        """Sum all uses of one kind that arrived, and emit them unless a tied head is due."""
        assert self._sink is not None
        tied = uses.kinds["matrix"] > 0 and uses.kinds["embedding"] > 0
        if kind == "embedding" and tied and self._draw not in uses.cross and not last:
            return
        allowed = {"matrix", "embedding"} if tied else {kind}
        merged = _merge(uses.arrived.pop(kind)) if set(uses.kinds) <= allowed else None
        if merged is None:
            self.failures.setdefault(name, "its uses cannot be summed before squaring")
            return
        if kind == "embedding" and isinstance(merged, EmbeddingScore):
            cross = uses.cross.pop(self._draw, None)
            if cross is not None:
                merged = EmbeddingScore(merged.ids, merged.g, torch.cat(cross))
        everything = slice(0, self._batch)
        if kind == "matrix" and tied:
            self._pair(name, uses, merged, everything, self._draw)
        self._emit(self._sink, name, merged, everything, self._draw)
        waiting = len(uses.arrived.get("embedding", ()))
        if kind == "matrix" and tied and waiting == uses.kinds["embedding"]:
            self._settle(name, uses, "embedding", last)

    def _pair(self, name: str, uses: _Uses, head: Score, rows: slice, draw: int) -> None:
        """Keep the rows of a head's score that the tied embedding will meet."""
        if not isinstance(head, MatrixScore) or head.transposed:
            self.failures.setdefault(name, "a transposed head shares an embedding")
            return
        ids = torch.cat([i.reshape(self._batch, -1) for i in uses.ids], 1)[rows]
        uses.cross.setdefault(draw, []).append(cross_rows(head, ids))

    def deliver(self, name: str, score: Score, rows: slice, draw: int, sink: Sink) -> None:
        """Hand on the score of a head that is worked out outside autograd.

        Args:
            name: Requested name of the head's parameter.
            score: Score over the examples ``rows``.
            rows: Consecutive examples; several calls must come in order.
            draw: Number of the set of labels.
            sink: Receives the score.
        """
        uses = self._uses[name]
        if uses.kinds[score.kind] > 1 or set(uses.kinds) - {score.kind, "embedding"}:
            self.failures.setdefault(name, "the head's parameter is also used elsewhere")
            return
        if uses.kinds["embedding"]:
            self._pair(name, uses, score, rows, draw)
        self._emit(sink, name, score, rows, draw)

    def _emit(self, sink: Sink, name: str, score: Score, rows: slice, draw: int) -> None:
        sink(name, score, rows, draw)

    def _flush(self) -> None:
        """Take what is left when some use of a parameter got no gradient at all."""
        for name, uses in self._uses.items():
            for kind in ("matrix", "embedding", "vector", "dense", "experts"):
                if uses.arrived.get(kind):
                    self._settle(name, uses, kind, last=True)
            uses.arrived.clear()


def _merge(parts: Sequence[Score]) -> Score | None:
    merged: Score | None = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part) if merged is not None else None
    return merged

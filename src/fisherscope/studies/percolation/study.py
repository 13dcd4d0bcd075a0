"""``percolation()``: where a model breaks when its weights are removed, and which hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.defaults import DEFAULTS
from fisherscope.engine.whole import needs_whole
from fisherscope.errors import ParameterError
from fisherscope.structures import Fisher
from fisherscope.studies.percolation.bench import Bench, Change
from fisherscope.studies.percolation.concentration import plane_curves, plane_frames
from fisherscope.studies.percolation.connectivity import connectivity
from fisherscope.studies.percolation.critical import check_candidates, critical_units
from fisherscope.studies.percolation.functional import Curve, removal_curve
from fisherscope.studies.percolation.graph import NeuronGraph, neuron_graph
from fisherscope.studies.percolation.orders import ANY_TASK, Order
from fisherscope.studies.percolation.plan import PLANE_DRAWS, SINGLE, PercolationPlan, make_plan
from fisherscope.studies.percolation.removal import Removal
from fisherscope.studies.percolation.request import (
    WATCHED,
    PercolationOptions,
    Request,
    make_request,
)
from fisherscope.studies.percolation.result import (
    MODEL,
    Percolation,
    curves_frame,
    intact_frame,
)
from fisherscope.studies.percolation.threshold import thresholds
from fisherscope.studies.percolation.units import Level, Units, find_units
from fisherscope.studies.percolation.watch import Watch

OPTIONS = PercolationOptions()


@needs_whole
@torch.inference_mode(False)
def percolation(
    model: nn.Module,
    fisher: Fisher | Mapping[str, Fisher] | None,
    data: Any,
    *,
    levels: Sequence[Level] = OPTIONS.levels,
    orders: Sequence[Order] = OPTIONS.orders,
    removal: Removal = OPTIONS.removal,
    norm: float = OPTIONS.norm,
    repetitions: int = OPTIONS.repetitions,
    points: int = OPTIONS.points,
    fractions: Sequence[float] | None = OPTIONS.fractions,
    side: int = OPTIONS.side,
    candidates: int = OPTIONS.candidates,
    structure: bool = OPTIONS.structure,
    seed: int = OPTIONS.seed,
    gradients: Mapping[str, Mapping[str, Tensor]] | None = None,
    likelihood: str = DEFAULTS.likelihood,
    batch_size: int | None = DEFAULTS.batch_size,
    max_examples: int | None = WATCHED,
    folder: str | Path | None = None,
    progress: bool = False,
    name: str = MODEL,
    on_plan: Callable[[PercolationPlan], None] | None = None,
) -> Percolation:
    r"""Remove more and more of a model and watch when each task is lost.

    **Removal curves.** Units of each level are removed one after another, in each order; at every
    fraction the loss, the accuracy and the divergence :math:`\mathrm{KL}(p_\theta \| p_{\theta'})`
    from the intact model are measured on every task, so that damage chosen for one is also watched
    on the others. The fractions are logarithmic from a single unit on, and denser where the loss
    bends.

    **Thresholds** of each curve on each task, with L(f) the loss at fraction f, L₀ the intact loss
    and L₁ the *uninformed* one: the logarithm of the number of classes, for a regression the loss
    of the best constant.

    ``midpoint``
        The smallest f with L(f) = (L₀ + L₁)/2; between the points L is linear in
        log(removed + ½).
    ``steepest``
        Where the loss, cut off at L₁, rises fastest per logarithm of the fraction.
    ``susceptibility``
        Where the repetitions differ most; random orders and noise only.
    ``robustness``
        The part of L₁ − L₀ that is not lost, averaged over f from 0 to 1 (for curves of
        connectivity Schneider et al. 2011).
    ``attack_ratio``
        The midpoint in random order divided by that of the order.

    Outcomes: ``ok``, ``at_first_unit`` (one unit is enough), ``not_reached``,
    ``no_better_than_uninformed`` (the intact model does not know the task, so it has nothing to
    lose), ``no_repetitions``, ``no_random``, ``too_few_examples`` (no interval).

    **Phase diagram.** Gaussian noise of one length is spread over the top fraction of the weights
    by Fisher, where the task that it was estimated on is watched, or over random ones.

    **Critical units.** The top candidates of every order are removed one by one.

    **Structure.** Linear layers as bonds between neurons: when does the graph fall apart? See
    :func:`fisherscope.studies.percolation.connectivity.connectivity`.

    Args:
        model: The model; it comes back bitwise, also after an exception or Ctrl-C.
        fisher: A Fisher of the model for one task, or task to Fisher; any structure that has a
            diagonal, over the parameters that may be removed. ``None`` allows only orders
            that need none, over all parameters.
        data: The examples of that task, or task to examples, as in :func:`fisherscope.estimate`;
            tasks without a Fisher are watched only. Best are examples that the Fisher has not
            seen.
        levels: What is removed: ``"weight"``, ``"neuron"`` (hidden units of MLPs), ``"head"``
            (key-value heads with their query heads), ``"layer"``. Default: weights.
        orders: ``"fisher"``, ``"obd"`` (:math:`F\theta^2`), ``"magnitude"``, ``"gradient"``
            (:math:`|g\theta|`), all largest first; ``"inverse"`` (Fisher, smallest first); and
            ``"random"``. Default: all.
        removal: ``"zero"``; ``"mean"``, the mean of the weight's tensor; or ``"noise"``, Gaussian
            noise of one length over the removed weights, however many. Default: ``"zero"``.
        norm: Length of that noise as a fraction of the length of all weights. Default: 0.1.
        repetitions: Draws of random orders and of noise. Default: 3.
        points: Fractions per curve, where the grid is adaptive. Default: 11.
        fractions: Fractions between 0 and 1 to measure instead; 0 and 1 are added. Default:
            ``None``, adaptive.
        side: Fractions and lengths of the phase diagram; 0 leaves it out. Default: 4.
        candidates: Units per order that are removed one by one; 0 leaves it out. Default: 5.
        structure: Whether the neuron graph is looked at. Default: ``True``.
        seed: Keys random orders, noise and resampling. Default: 0.
        gradients: Task to :func:`fisherscope.mean_gradient`. Default: ``None``, taken on ``data``.
        likelihood: As in :func:`fisherscope.estimate`. Default: ``"auto"``.
        batch_size: Examples per pass. Default: ``None``, packs to 4096 tokens.
        max_examples: Watch the first so many of each task; ``None`` watches all. Default: 24,
            because each of some hundred evaluations passes over them.
        folder: Keeps every measurement; the same call goes on from there. Default: ``None``.
        progress: Show a bar with the remaining time. Default: ``False``.
        name: What the model is called in the tables. Default: ``"model"``.
        on_plan: Called with the plan before the first change of a weight. Default: nothing.

    Returns:
        Curves, thresholds, phase diagram, critical units and structure.

    Raises:
        ParameterError: If an option is unknown or out of range, an order needs a Fisher that is
            not there, more candidates are asked for than there are units, or the model has no
            units of a level. A Fisher of another model is an ``IdentityError``, a Fisher of a
            task without data a ``TaskError``.
    """  # noqa: DOC502 (raised by callees)
    options = PercolationOptions(
        levels=_tuple(levels),
        orders=_tuple(orders),
        removal=removal,
        norm=norm,
        repetitions=repetitions,
        points=points,
        fractions=_tuple(fractions),
        side=side,
        candidates=candidates,
        structure=structure,
        seed=seed,
    )
    request = make_request(
        model,
        fisher,
        data,
        gradients=gradients,
        likelihood=likelihood,
        batch_size=batch_size,
        max_examples=max_examples,
        options=options,
    )
    units = {level: find_units(model, request.parameters, level) for level in options.levels}
    for one in units.values():
        if options.candidates and one.level in SINGLE:
            check_candidates(one, options.candidates)
    graph, notes = _graph(request)
    watch = Watch(model, request.prepared)
    bench = Bench(
        request.parameters,
        watch,
        seed=seed,
        folder=None if folder is None else Path(folder),
        identity=request.identity(),
        progress=progress,
    )
    plan = make_plan(request, watch, units, graph)
    if on_plan is not None:
        on_plan(plan)
    with bench.running(plan.evaluations):
        curves = _curves(bench, request, units)
        plane, line = _plane(bench, request, units)
        critical = _critical(bench, request, units)
    structural, joined = (
        (pd.DataFrame(), pd.DataFrame()) if graph is None else connectivity(graph, request)
    )
    tasks = watch.tasks
    for task in tasks.values():
        task.intact.clear()  # as large as all logits, and no longer needed
    frames = {
        "intact": intact_frame(watch, seed),
        "thresholds": thresholds(curves, tasks, seed),
        "curves": curves_frame(curves, tasks, seed),
        "plane": plane,
        "line": line,
        "critical": critical,
        "structural": structural,
        "structure": joined,
    }
    for frame in frames.values():
        frame.insert(0, MODEL, name)
    return Percolation(
        **frames,
        plan={name: plan},
        notes=notes,
        seed=seed,
        measured={name: tuple(curves)},
        tasks={name: tasks},
    )


def _tuple(values: Any) -> Any:
    # A single word or number stays as it is, so that the check can name it.
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else values


def _change(options: PercolationOptions, length: float) -> Change:
    if options.removal == "noise":
        return Change("noise", options.norm * length)
    return Change(options.removal)


def _graph(request: Request) -> tuple[NeuronGraph | None, tuple[str, ...]]:
    if not request.options.structure:
        return None, ()
    try:
        return neuron_graph(request.model, list(request.parameters)), ()
    except ParameterError as error:
        return None, (f"There is no graph of neurons. {error}",)


def _curves(bench: Bench, request: Request, units: Mapping[str, Units]) -> list[Curve]:
    options = request.options
    change = _change(options, request.length)
    return [
        removal_curve(
            bench,
            one,
            request.orderings(order, by, one),
            change,
            points=options.points,
            fractions=options.fractions,
        )
        for one in units.values()
        for order in options.orders
        for by in request.sources(order)
    ]


def _plane(
    bench: Bench, request: Request, units: Mapping[str, Units]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    options = request.options
    if not options.side or "weight" not in units:
        return pd.DataFrame(), pd.DataFrame()
    weights = units["weight"]
    draws = min(PLANE_DRAWS, options.repetitions)
    planes = []
    every: list[tuple[Order, str]] = [("fisher", by) for by in request.by]
    for order, by in [*every, ("random", ANY_TASK)]:
        found = request.orderings(order, by, weights)
        orderings = (found * draws)[:draws] if order == "fisher" else found[:draws]
        planes.append(plane_curves(bench, weights, orderings, request.length, options.side))
    return plane_frames(planes, bench.watch.tasks, options.seed)


def _critical(bench: Bench, request: Request, units: Mapping[str, Units]) -> pd.DataFrame:
    options = request.options
    if not options.candidates:
        return pd.DataFrame()
    change = Change("mean" if options.removal == "mean" else "zero")
    frames = [
        critical_units(bench, request, one, by, change)
        for one in units.values()
        if one.level in SINGLE
        for by in request.by
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

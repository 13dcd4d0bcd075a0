"""Everything that is settled before the first pass: examples, likelihood, coverage, identity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar, get_args

import torch
from torch import nn

from fisherscope import specs
from fisherscope.data import Example, examples, fingerprint
from fisherscope.defaults import FisherConfig, FisherType, OnNonFinite, Sampling, Unit
from fisherscope.distributed import Ranks, unwrapped
from fisherscope.engine.away import check_shards, is_sharded, rest
from fisherscope.engine.coverage import SLOW, Coverage, bind
from fisherscope.engine.fingerprint import model_fingerprint
from fisherscope.engine.formats import ScaleError, next_scale
from fisherscope.engine.layers import UnexpectedShapeError
from fisherscope.engine.selection import check_finite, select
from fisherscope.engine.sweep import Labelling
from fisherscope.engine.verify import cover
from fisherscope.engine.whole import check_whole
from fisherscope.errors import CoverageError, DataError, IdentityError, ParameterError
from fisherscope.likelihoods import Likelihood
from fisherscope.recognition import resolve
from fisherscope.structures import Identity

T = TypeVar("T")

try:
    VERSION = version("fisherscope")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0+unknown"


@dataclass(frozen=True)
class Prepared:
    """A checked request.

    Attributes:
        model: The model.
        config: The options.
        examples: Labelled examples, each with at least one supervised token.
        likelihood: The model's likelihood.
        parameters: Requested name to parameter.
        coverage: What covers which parameter.
        identity: Identity of the result.
    """

    model: nn.Module
    config: FisherConfig
    examples: list[Example]
    likelihood: Likelihood
    parameters: dict[str, nn.Parameter]
    coverage: Coverage
    identity: Identity

    def slower(self, names: Mapping[str, str]) -> Prepared:
        """The same request with more parameters on the exact slow path.

        Args:
            names: Parameter to reason.

        Returns:
            A new request.
        """
        known = self.coverage
        reasons = {n: known.text[n].removeprefix(f"{SLOW}: ") for n in known.slow} | dict(names)
        coverage = bind(self.model, self.parameters, known.head, reasons, known.single, known.width)
        coverage = replace(coverage, shared=known.shared, scale=known.scale)
        return replace(self, coverage=coverage)

    def only(self, names: Collection[str]) -> Prepared:
        """The same request for some of the parameters.

        Args:
            names: Requested names to keep.

        Returns:
            A new request.
        """
        parameters = {name: p for name, p in self.parameters.items() if name in names}
        shapes = {n: s for n, s in self.identity.parameters.items() if n in names}
        return replace(
            self,
            parameters=parameters,
            coverage=self.coverage.only(parameters),
            identity=replace(self.identity, parameters=shapes),
        )

    def under(self, config: FisherConfig) -> Prepared:
        """The same request for other labels or another unit.

        Args:
            config: Options that differ in ``fisher_type``, ``unit``, ``draws``, ``seed`` or
                ``sampling`` at most; this request has the data's labels.

        Returns:
            A new request.
        """
        sampled = config.fisher_type == "mc"
        identity = replace(
            self.identity,
            fisher_type=config.fisher_type,
            unit=config.unit,
            draws=config.draws if sampled else 1,
            seed=config.seed if sampled else 0,
            sampling=config.sampling if sampled else "labels",
        )
        return replace(self, config=config, identity=identity)

    @cached_property
    def labelling(self) -> Labelling:
        """Which labels are scored."""
        return labelling(self.config, self.coverage.width)

    @cached_property
    def spec(self) -> specs.Spec:
        """The structure."""
        return specs.parse(self.config.structure)

    @property
    def kept_sets(self) -> int:
        """How many sets of labels keep their norms apart: the draws."""
        return max(1, self.labelling.draws)


def settled(prepared: Prepared, run: Callable[[Prepared], T]) -> T:
    """Run something, again from the start if a layer turns out to be used unlike before.

    So it is with a smaller scale of the loss if gradients overflow in fp16.

    Args:
        prepared: The request; its rules were right on the examples that verified them.
        run: What to do with it.

    Returns:
        What ``run`` returned.

    Raises:
        CoverageError: If no parameter can be blamed.
    """
    while True:
        try:
            return run(prepared)
        except UnexpectedShapeError as error:
            if not error.names:
                raise CoverageError(
                    f"a layer was used in a way that can't be attributed to examples ({error}); "
                    "use batch_size=1"
                ) from error
            prepared = prepared.slower(error.names)
        except ScaleError:
            lower = next_scale(prepared.coverage.scale)
            prepared = replace(prepared, coverage=replace(prepared.coverage, scale=lower))


def labelling(config: FisherConfig, width: int) -> Labelling:
    """Which labels an estimate scores.

    Args:
        config: The options.
        width: Last dimension of the model's output.

    Returns:
        Draws, seed, and whether tokens are backpropagated one by one.
    """
    if config.fisher_type == "mc":
        return Labelling(draws=config.draws, seed=config.seed, sampling=config.sampling)
    if config.fisher_type == "type-2":
        return Labelling(columns=width)
    return Labelling(split=config.unit == "token")


@dataclass(frozen=True)
class Request:
    """What is asked for, as far as it can be checked without the model's weights.

    Attributes:
        model: The model.
        config: The options.
        examples: Labelled examples, each with at least one supervised token.
        likelihood: The model's likelihood.
        parameters: Requested name to parameter.
    """

    model: nn.Module
    config: FisherConfig
    examples: list[Example]
    likelihood: Likelihood
    parameters: dict[str, nn.Parameter]

    def identity(self, fingerprint_of_model: str = "") -> Identity:
        """Of the result.

        Args:
            fingerprint_of_model: The model's. Default: ``""``, not known yet.

        Returns:
            The identity.
        """
        dtypes = {str(p.dtype).removeprefix("torch.") for p in self.parameters.values()}
        config = self.config
        sampled = config.fisher_type == "mc"
        return Identity(
            fisher_type=config.fisher_type,
            unit=config.unit,
            structure=str(specs.parse(config.structure)),
            likelihood=self.likelihood.name,
            draws=config.draws if sampled else 1,
            seed=config.seed if sampled else 0,
            parameters={name: tuple(p.shape) for name, p in self.parameters.items()},
            model_fingerprint=fingerprint_of_model,
            data_fingerprint=fingerprint(self.examples),
            dtype="+".join(sorted(dtypes)),
            version=VERSION,
            sampling=config.sampling if sampled else "labels",
        )

    def prepared(self, limit: int | None = None) -> Prepared:
        """Look at the weights, and let two examples through the model.

        Args:
            limit: As in :func:`fisherscope.engine.verify.cover`. Default: ``None``.

        Returns:
            The checked request.
        """
        check_finite(self.model)
        rows, likelihood, parameters = self.examples, self.likelihood, self.parameters
        return Prepared(
            model=self.model,
            config=self.config,
            examples=rows,
            likelihood=likelihood,
            parameters=parameters,
            coverage=cover(self.model, likelihood, rows, parameters, limit),
            identity=self.identity(model_fingerprint(self.model)),
        )


def prepare(model: nn.Module, data: Any, config: FisherConfig) -> Prepared:
    """Check everything that can be checked without a long pass.

    Args:
        model: The model.
        data: Anything that :func:`fisherscope.data.examples` takes.
        config: The options.

    Returns:
        The checked request; two examples have been through the model. One that is sharded or
        offloaded raises :class:`ParameterError`.
    """
    check_whole(model, "what was asked for")
    return request(model, data, config).prepared()


def agreed(
    model: nn.Module,
    data: Any,
    config: FisherConfig,
    ranks: Ranks,
    limit: int | None = None,
    *options: Any,
) -> Prepared:
    """Check everything on all ranks, also for a model that is sharded or offloaded.

    Args:
        model: The model.
        data: Anything that :func:`fisherscope.data.examples` takes.
        config: The options.
        ranks: All of them make this call.
        limit: As in :meth:`Request.prepared`. Default: ``None``.
        *options: Further ones that have to be the same on all ranks.

    Returns:
        The checked request; two examples have been through the model.
    """
    asked: list[Request] = []
    found: list[Prepared] = []

    def ask() -> tuple[Any, ...]:
        asked.append(request(model, data, config))
        check_shards(asked[0].model, ranks)
        shared = (config.batch_size, config.halves, config.on_nonfinite, limit, *options)
        return asked[0].identity(), shared, {}

    def look() -> tuple[Any, ...]:
        with ranks.in_step(is_sharded(asked[0].model)):
            found.append(asked[0].prepared(limit))
        return found[0].identity, (), found[0].coverage.text

    _same(ranks.each(ask))
    _same(ranks.each(look))
    return found[0]


def _same(said: Sequence[tuple[Identity, tuple[Any, ...], dict[str, str]]]) -> None:
    """Make sure that all ranks were asked for the same thing."""
    first, options, rules = said[0]
    for rank, (other, theirs, covered) in enumerate(said):
        try:
            first.check(other, ignore=())
        except IdentityError as error:
            raise IdentityError(
                f"ranks 0 and {rank} were asked for different estimates: {error} Give every rank "
                "the same model and the same data (they are shared out here), or pass "
                "distributed=False."
            ) from error
        if theirs != options or covered != rules:
            raise IdentityError(
                f"ranks 0 and {rank} differ in batch_size, halves, on_nonfinite, memory_limit, "
                f"offload_folder, checkpoint ({options} and {theirs}) or in what covers which "
                "parameter; make the same call on the same kind of machine"
            )


def request(model: nn.Module, data: Any, config: FisherConfig) -> Request:
    """Check everything that can be checked without a pass, and without a message to other ranks.

    Args:
        model: The model.
        data: Anything that :func:`fisherscope.data.examples` takes.
        config: The options.

    Returns:
        What is asked for.

    Raises:
        DataError: If an example has no supervised token.
    """
    _check_options(config)
    model = unwrapped(model)
    rest(model)
    parameters = select(model, config.parameters)
    with torch.random.fork_rng(devices=[]):  # a shuffling loader draws from the global state
        rows = examples(data, max_examples=config.max_examples)
    likelihood = resolve(model, config.likelihood, rows)
    rows = likelihood.complete(rows, sampled=config.fisher_type != "empirical")
    likelihood.check(rows, model)
    mute = [e.id for e in rows if not likelihood.tokens(e)]
    if mute:
        raise DataError(
            f"no supervised token in example {', '.join(map(repr, mute[:5]))}"
            + (f" and {len(mute) - 5} more" if len(mute) > 5 else "")
            + "; drop these rows, or raise max_length"
        )
    return Request(model, config, rows, likelihood, parameters)


def identity(model: nn.Module, data: Any, config: FisherConfig) -> Identity:
    """The identity of an estimate, without making it.

    Args:
        model: The model.
        data: The examples; may be empty.
        config: The options.

    Returns:
        The identity.
    """
    model = unwrapped(model)
    rows = examples(data, max_examples=config.max_examples) if len(data) else []
    likelihood = resolve(model, config.likelihood, rows)
    rows = likelihood.complete(rows, sampled=config.fisher_type != "empirical")
    parameters = select(model, config.parameters)
    asked = Request(model, config, list(rows), likelihood, parameters)
    return asked.identity(model_fingerprint(model))


def _check_options(config: FisherConfig) -> None:
    spec = specs.parse(config.structure)
    for name, allowed in (
        ("fisher_type", FisherType),
        ("sampling", Sampling),
        ("unit", Unit),
        ("on_nonfinite", OnNonFinite),
    ):
        value = getattr(config, name)
        if value not in get_args(allowed):
            raise ParameterError(
                f"{name}={value!r} is not available; use one of {', '.join(get_args(allowed))}"
            )
    _check_together(spec, config)
    for name in ("draws", "batch_size", "max_examples"):
        value = getattr(config, name)
        if value is None and name != "draws":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ParameterError(f"{name}={value!r} must be a positive integer")
    if not isinstance(config.seed, int) or isinstance(config.seed, bool):
        raise ParameterError(f"seed={config.seed!r} must be an integer")


def _check_together(spec: specs.Spec, config: FisherConfig) -> None:
    """Refuse what makes no sense together, by name."""
    kind, unit, fisher_type = type(spec), config.unit, config.fisher_type
    if unit == "batch" and fisher_type != "mc":
        raise ParameterError(
            f"unit='batch' squares the sum over a batch, which estimates the Fisher only because "
            f"independently drawn labels have scores of mean zero; with fisher_type="
            f"{fisher_type!r} it would be the square of a batch gradient, not a Fisher. Use "
            "fisher_type='mc', or unit='example'."
        )
    if unit == "batch" and kind not in (specs.Diagonal, specs.Grouped):
        raise ParameterError(
            f"unit='batch' keeps one squared sum per batch, which structure={str(spec)!r} can't be "
            "made from; use structure='diagonal' or 'grouped', or unit='example'."
        )
    if unit == "position" and kind in (specs.Block, specs.Dense):
        raise ParameterError(
            f"unit='position' has no structure={str(spec)!r}: a position has a score at one layer "
            "only, so that blocks of several positions are what 'kfac' approximates; use "
            "unit='example' or 'token'."
        )
    if unit == "position" and getattr(spec, "sharing", "expand") == "reduce":
        raise ParameterError(
            "sharing='reduce' sums over positions before anything is squared, which unit="
            "'position' contradicts; use sharing='expand', or unit='example'."
        )
    if config.sampling != "labels" and fisher_type != "mc":
        raise ParameterError(
            f"sampling={config.sampling!r} is about draws from the model, but fisher_type="
            f"{fisher_type!r} draws none; use fisher_type='mc'."
        )

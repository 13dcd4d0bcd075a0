"""One run of the main job, described completely: model, tasks, settings, output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from fisherscope import specs
from fisherscope.defaults import FisherConfig, FisherType, OnNonFinite, Sampling, Unit
from fisherscope.errors import ConfigError, ParameterError
from fisherscope.metrics.names import check_names
from fisherscope.naming import to_text
from fisherscope.partition import Budget

DType = Literal["auto", "float32", "float64", "bfloat16", "float16"]
SPARSITY = 0.5
# What stands in a run's folder beside the folders of its models.
RESERVED = ("checksums.json", "config.yaml", "results.json", "report.html", "fisher", "tables")
LIKELIHOODS = ("auto", "causal-lm", "masked-lm", "classification", "regression")


@dataclass(frozen=True, kw_only=True)
class DamageConfig:
    """How the damage matrix is made.

    Attributes:
        enabled: Whether it is made at all.
        measure: Whether each predicted damage is also measured by taking the step.
        max_examples: Examples of each task used for it; ``None`` takes all.
        fraction: How far to go along the step that is best for the moving task, as a
            fraction of that step.
        pair_examples: Examples of each task used to find out which of two tasks is hurt more;
            ``0`` leaves that out, since 16 cost half as much again as all the rest on a small
            language model.
    """

    enabled: bool = True
    measure: bool = True
    max_examples: int | None = 64
    fraction: float = 0.5
    pair_examples: int = 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that one run of the main job depends on.

    The values are checked on construction, so a config that exists is well formed; whether
    its files exist and its model loads is found out by :func:`fisherscope.metrics.analyze`.

    Attributes:
        model: Folder of a Hugging Face checkpoint, or a hub id; or model name to one of those
            for several, of which the first is what the others are compared with.
        tasks: Task name to JSONL file.
        out: Folder for everything that the run leaves; ``None`` where nothing is written.
        fisher: How each task's Fisher is estimated; ``halves`` is always kept, ``parameters`` are
            kept in their form in text.
        max_length: Longest sequence in tokens; longer rows are cut.
        sparsity: Share of weights pruned in the masks whose overlap is shown.
        damage: How the damage matrix is made.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        dtype: Precision of the weights; ``"auto"`` keeps the one they are stored in.
        device: Where to run, ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``"auto"`` takes the
            first GPU if there is one.
        revision: Branch, tag or commit of a hub id; ``None`` takes its main branch. A run
            writes down the commit that it found, so that it replays on the same weights.
        memory_limit: As in :func:`fisherscope.estimate`; ``None`` for no limit.
        offload_folder: As in :func:`fisherscope.estimate`; ``None`` for memory, or with a
            ``memory_limit`` for files without a name in ``out``.
        study: Of a study's run: its ``command`` and that command's own options, as on the
            command line; ``None`` for the main job.
    """

    model: str | Mapping[str, str]
    tasks: Mapping[str, str]
    out: str | None = None
    fisher: FisherConfig = field(default_factory=lambda: FisherConfig(halves=True))
    max_length: int = 512
    sparsity: float = SPARSITY
    damage: DamageConfig = field(default_factory=DamageConfig)
    trust_remote_code: bool = False
    dtype: DType = "auto"
    device: str = "auto"
    revision: str | None = None
    memory_limit: int | str | None = None
    offload_folder: str | None = None
    study: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_models()
        if not isinstance(self.tasks, Mapping) or not self.tasks:
            raise ConfigError(
                f"tasks is {self.tasks!r}; give at least one name and JSONL file, "
                "for example --task code=code.jsonl"
            )
        check_names(self.tasks)
        for name, path in self.tasks.items():
            _text(f"tasks.{name}", path)
        if self.out is not None:
            _text("out", self.out)
        _whole("max_length", self.max_length, low=2)
        _number("sparsity", self.sparsity, low=0.0, high=1.0)
        _flag("trust_remote_code", self.trust_remote_code)
        _choice("dtype", self.dtype, get_args(DType))
        _text("device", self.device)
        for key in ("revision", "offload_folder"):
            if getattr(self, key) is not None:
                _text(key, getattr(self, key))
        try:
            _ = self.budget
        except ParameterError as error:
            raise ConfigError(str(error)) from error
        if self.study is not None:
            if not isinstance(self.study, Mapping):
                raise ConfigError(f"study is {self.study!r}; expected a mapping of options")
            _text("study.command", self.study.get("command"))
        _check_fisher(self.fisher)
        object.__setattr__(self, "fisher", _in_text(self.fisher))
        _check_damage(self.damage)

    def _check_models(self) -> None:
        if not isinstance(self.model, Mapping):
            _text("model", self.model)
            return
        if len(self.model) < 2:
            raise ConfigError(
                f"model names {len(self.model)} model; name at least two to compare, or give "
                "one without a name"
            )
        check_names(self.model, "model")
        for name, source in self.model.items():
            _text(f"model.{name}", source)
        taken = sorted({name for name in self.model if name.casefold() in RESERVED})
        if taken:
            raise ConfigError(
                f"model name {taken[0]!r} is that of something else in a run; choose another"
            )
        if self.revision is not None:
            raise ConfigError(
                "revision is for a single model; of several, give folders, or run each by itself"
            )

    @property
    def source(self) -> str:
        """Where the model is, of a run of one model; several are a ``ConfigError``."""
        if isinstance(self.model, str):
            return self.model
        raise ConfigError(
            f"{len(self.model)} models are named ({', '.join(self.model)}); only `analyze` "
            "and `percolate` take several, give a single one"
        )

    @property
    def budget(self) -> Budget:
        """The memory for sums; those beyond a limit are where the run leaves its own."""
        beyond = None if self.memory_limit is None else self.out
        return Budget.of(self.memory_limit, self.offload_folder or beyond)

    def alone(self, name: str) -> RunConfig:
        """The run of one of several models.

        Args:
            name: Its name.

        Returns:
            The same run with that model alone, in a folder of its own.
        """
        assert isinstance(self.model, Mapping)
        out = None if self.out is None else os.path.join(self.out, name)
        return replace(self, model=self.model[name], out=out)


def _check_fisher(fisher: FisherConfig) -> None:
    if not isinstance(fisher, FisherConfig):
        raise ConfigError(f"fisher is {fisher!r}; expected settings (a FisherConfig)")
    try:
        specs.parse(fisher.structure)
    except ParameterError as error:
        raise ConfigError(f"fisher.{error}") from error
    _choice("fisher.fisher_type", fisher.fisher_type, get_args(FisherType))
    _choice("fisher.unit", fisher.unit, get_args(Unit))
    _choice("fisher.sampling", fisher.sampling, get_args(Sampling))
    _choice("fisher.likelihood", fisher.likelihood, LIKELIHOODS)
    _choice("fisher.on_nonfinite", fisher.on_nonfinite, get_args(OnNonFinite))
    _whole("fisher.draws", fisher.draws, low=1)
    _whole("fisher.seed", fisher.seed, low=0)
    if fisher.batch_size is not None:
        _whole("fisher.batch_size", fisher.batch_size, low=1)
    if fisher.max_examples is not None:
        _whole("fisher.max_examples", fisher.max_examples, low=1)


def _in_text(fisher: FisherConfig) -> FisherConfig:
    # What a file can hold, so that a config equals the one that is read back from it.
    try:
        parameters = to_text(fisher.parameters)
    except ParameterError as error:
        raise ConfigError(f"fisher.parameters: {error}") from error
    for part in [parameters] if isinstance(parameters, str) else parameters or ():
        _text("fisher.parameters", part)
    return replace(fisher, parameters=parameters)


def _check_damage(damage: DamageConfig) -> None:
    if not isinstance(damage, DamageConfig):
        raise ConfigError(f"damage is {damage!r}; expected settings (a DamageConfig)")
    _flag("damage.enabled", damage.enabled)
    _flag("damage.measure", damage.measure)
    if damage.max_examples is not None:
        _whole("damage.max_examples", damage.max_examples, low=2)
    _whole("damage.pair_examples", damage.pair_examples, low=0)
    _number("damage.fraction", damage.fraction, low=0.0, high=100.0)


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key} is {value!r}; expected text that is not empty")


def _flag(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {value!r}; expected true or false")


def _choice(key: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{key} is {value!r}; expected one of {', '.join(known)}")


def _whole(key: str, value: Any, *, low: int) -> None:
    # bool is a subclass of int, and `draws: yes` is a mistake, not a one.
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{key} is {value!r}; expected a whole number of at least {low}")


def _number(key: str, value: Any, *, low: float, high: float) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits or not low < value < high:
        raise ConfigError(f"{key} is {value!r}; expected a number between {low:g} and {high:g}")


def settings_of(config: FisherConfig) -> dict[str, Any]:
    """The Fisher settings that a user may write in a config file.

    Args:
        config: The settings.

    Returns:
        One entry per field of :class:`FisherConfig`, without ``halves`` (always kept) and
        ``ema_decay`` (not used by a run).
    """
    return {name: getattr(config, name) for name in FISHER_KEYS}


FISHER_KEYS = tuple(f.name for f in fields(FisherConfig) if f.name not in {"halves", "ema_decay"})
DAMAGE_KEYS = tuple(f.name for f in fields(DamageConfig))
RUN_KEYS = tuple(f.name for f in fields(RunConfig))

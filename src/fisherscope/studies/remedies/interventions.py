"""From an arm and a seed to what is trained, with which penalty, and what may move."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor, nn

from fisherscope.data import Example
from fisherscope.estimation import estimate
from fisherscope.structures import Fisher
from fisherscope.studies.course import Penalty
from fisherscope.studies.remedies import arms, coordinates, placement
from fisherscope.studies.remedies.setting import Setting
from fisherscope.studies.tuning import Schedule
from fisherscope.surgery import EWC


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """How one fine-tuning differs from the plain one.

    Attributes:
        model: What is copied and trained.
        schedule: Steps and rates.
        penalty: As :func:`fisherscope.studies.course.follow` takes it.
        trainable: As there; every parameter that is trained is named.
        n_trainable: Weights that may move.
        nbytes: What it keeps beside the model: Fisher and anchor of a penalty; mask and held
            weights; or the adapters. Optimiser states are not counted.
        modules: Layers with an adapter.
    """

    model: nn.Module
    schedule: Schedule
    penalty: Penalty | None = None
    trainable: Mapping[str, Tensor] | None = None
    n_trainable: int
    nbytes: int = 0
    modules: tuple[str, ...] = ()


class Interventions:
    """Makes interventions; what several share is made once, when it is first needed.

    Args:
        setting: The study's input.
        progress: Show the bars of estimates.
    """

    def __init__(self, setting: Setting, *, progress: bool):
        self.setting, self.progress = setting, progress
        self._makers: dict[str, Callable[[int], Intervention]] = {
            arms.PLAIN: self._plain,
            arms.EWC: lambda seed: self._penalised(self.old_fishers),
            arms.L2: lambda seed: self._penalised([
                even(f, setting.movable) for f in self.old_fishers
            ]),
            arms.FREEZE: lambda seed: self._masked(self.free),
            arms.FREEZE_RANDOM: lambda seed: self._masked(inverse_shuffled(self.free, seed)),
            arms.MASK: lambda seed: self._masked(self.guided),
            arms.MASK_RANDOM: lambda seed: self._masked(coordinates.shuffled(self.guided, seed)),
            arms.LORA: lambda seed: self._adapted(self.chosen, seed),
            arms.LORA_RANDOM: lambda seed: self._adapted(
                placement.random_like(self.chosen, placement.places(setting.model), seed), seed
            ),
        }

    def make(self, arm: str, seed: int) -> Intervention:
        """One arm's intervention.

        Args:
            arm: Its name.
            seed: Of random masks, random layers and adapters.

        Returns:
            The intervention.
        """
        return self._makers[arm](seed)

    @cached_property
    def old_fishers(self) -> list[Fisher]:
        """Fishers of the old tasks, in their order."""
        given = self.setting.given
        if given is not None:
            return [given[task] for task in self.setting.old]
        return [self._estimate(self.setting.protect[task]) for task in self.setting.old]

    @cached_property
    def old(self) -> dict[str, Tensor]:
        """The old tasks' diagonals together."""
        return coordinates.pooled(self.old_fishers, self.setting.movable)

    @cached_property
    def free(self) -> dict[str, Tensor]:
        """Where a weight may move if the top coordinates are frozen."""
        s = self.setting.strengths
        return coordinates.frozen(self.old, s.freeze_share, s.scope)

    @cached_property
    def guided(self) -> dict[str, Tensor]:
        """Where a weight may move under the mask."""
        s = self.setting.strengths
        new = coordinates.pooled([self._estimate(self.setting.learn_sample)], self.setting.movable)
        return coordinates.guided(new, self.old, s.mask_share, s.scope)

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """Linear layers, the least interfering first."""
        config = self.setting.config
        request = self.setting.learn
        return placement.interference_of(
            self.setting.model,
            dataclasses.replace(request, examples=self.setting.learn_sample),
            self.setting.protect,
            likelihood=config.likelihood,
            draws=config.draws,
            seed=config.seed,
            batch_size=config.batch_size,
        )

    @cached_property
    def chosen(self) -> list[str]:
        """The layers that get an adapter."""
        share = self.setting.strengths.lora_share
        count = placement.count_of(share, len(self.ranking))
        return list(self.ranking["module"][:count])

    def _estimate(self, rows: Sequence[Example]) -> Fisher:
        config = self.setting.config
        movable = set(self.setting.movable)
        return estimate(
            self.setting.model,
            list(rows),
            structure="diagonal",
            fisher_type=config.fisher_type,
            unit=config.unit,
            parameters=lambda name, _: name in movable,
            likelihood=config.likelihood,
            draws=config.draws,
            seed=config.seed,
            batch_size=config.batch_size,
            progress=self.progress,
        )

    @property
    def _moving(self) -> dict[str, nn.Parameter]:
        named = dict(self.setting.model.named_parameters())
        return {name: named[name] for name in self.setting.movable}

    def _plain(self, seed: int) -> Intervention:
        del seed
        return Intervention(
            model=self.setting.model,
            schedule=self.setting.schedule,
            n_trainable=sum(p.numel() for p in self._moving.values()),
        )

    def _penalised(self, fishers: list[Fisher]) -> Intervention:
        strength = self.setting.strengths.strength

        def penalty(copied: nn.Module) -> Callable[[], object]:
            return EWC(copied, fishers, strength=strength).add_gradient

        held = EWC(self.setting.model, fishers, strength=strength).nbytes
        return dataclasses.replace(self._plain(0), penalty=penalty, nbytes=sum(held.values()))

    def _masked(self, masks: Mapping[str, Tensor]) -> Intervention:
        held = sum(m.numel() * (1 + self._moving[n].element_size()) for n, m in masks.items())
        return Intervention(
            model=self.setting.model,
            schedule=self.setting.schedule,
            trainable=masks,
            n_trainable=sum(int(mask.sum()) for mask in masks.values()),
            nbytes=held,
        )

    def _adapted(self, modules: list[str], seed: int) -> Intervention:
        s, schedule = self.setting.strengths, self.setting.schedule
        model = placement.adapted(self.setting.model, modules, rank=s.lora_rank, seed=seed)
        added = [p for p in model.parameters() if p.requires_grad]
        return Intervention(
            model=model,
            schedule=dataclasses.replace(schedule, peak=schedule.peak * s.lora_rate),
            n_trainable=sum(p.numel() for p in added),
            nbytes=sum(p.numel() * p.element_size() for p in added),
            modules=tuple(modules),
        )


def even(fisher: Fisher, names: Sequence[str]) -> Fisher:
    """The Fisher with the same trace over some parameters, spread evenly over these.

    Args:
        fisher: A diagonal one.
        names: The parameters that may move.

    Returns:
        Another of the same identity.
    """
    moving = {name: fisher.sums[name] for name in names}
    total = math.fsum(float(t.sum(dtype=torch.float64)) for t in moving.values())
    mean = total / sum(t.numel() for t in moving.values())
    spread = {name: torch.full_like(t, mean) for name, t in moving.items()}
    return dataclasses.replace(fisher, sums={**fisher.sums, **spread})


def inverse_shuffled(free: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """As many random weights frozen in every tensor.

    Args:
        free: Parameter name to boolean tensor, false where a weight is frozen.
        seed: Of the choice.

    Returns:
        The same for random ones.
    """
    random = coordinates.shuffled({name: ~mask for name, mask in free.items()}, seed)
    return {name: ~mask for name, mask in random.items()}

"""Exponential moving average of Fishers along a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from fisherscope.arguments import check_number
from fisherscope.defaults import DEFAULTS
from fisherscope.errors import ParameterError, StoreError
from fisherscope.structures.fisher import Fisher
from fisherscope.structures.folder import read_folder, write_folder
from fisherscope.structures.identity import Identity
from fisherscope.structures.manifest import described_by, seal, unseal
from fisherscope.structures.shards import read_tensors, write_tensors

MANIFEST = "ema.json"
FORMAT = "fisherscope-ema"
FORMAT_VERSION = 1

_OWNED = re.compile(r"ema\.json|ema(-\d{5}-of-\d{5})?\.safetensors|ema\.safetensors\.index\.json")
# Along a training run the weights, the data and the label noise change with every step.
_CHANGING = ("data_fingerprint", "version", "model_fingerprint", "seed")


class FisherEMA:
    r"""Exponential moving average of the mean per unit, with its bias correction.

    The average starts from zero, :math:`F_t = \beta F_{t-1} + (1 - \beta) f_t`, so it is too
    small by the factor :math:`1 - \beta^t`, which :meth:`corrected` divides out. What is
    kept is the corrected average itself, updated by :math:`C_t = C_{t-1} +
    \frac{1 - \beta}{1 - \beta^t} (f_t - C_{t-1})`: the same number, but a constant sequence
    is reproduced to the last bit from the first step on.

    Attributes:
        decay: The factor :math:`\beta`.
        steps: Number of updates so far.
        identity: Identity of the latest update, ``None`` before the first.
    """

    def __init__(self, decay: float = DEFAULTS.ema_decay) -> None:
        """Start an empty average.

        Args:
            decay: At least 0 and below 1; 0 keeps the latest value only. Default: ``0.99``.

        Raises:
            ParameterError: If the decay is out of range.
        """  # noqa: DOC502 (raised by callees)
        check_number("decay", decay, low=0, below=1)
        self.decay = float(decay)
        self.steps = 0
        self.identity: Identity | None = None
        self._average: dict[str, Tensor] = {}

    def update(self, fisher: Fisher) -> None:
        """Take one more Fisher into the average.

        Args:
            fisher: A Fisher of the same kind and parameters as those before; model weights,
                data and seed may differ, anything else raises :class:`IdentityError`.

        Raises:
            ParameterError: If it has blocks, or if a tensor is grouped differently than before.
        """
        if fisher.layout:
            raise ParameterError(
                f"the average takes diagonal and grouped Fishers, not {fisher.identity.structure!r}"
                ': estimate with structure="diagonal", or add Fishers with +.'
            )
        if self.identity is not None:
            self.identity.check(fisher.identity, ignore=_CHANGING)
        means = fisher.means()
        for name, average in self._average.items():
            if average.shape != means[name].shape:
                raise ParameterError(
                    f"{name!r} has shape {tuple(means[name].shape)}, in the average so far "
                    f"{tuple(average.shape)}. Use one grouping throughout."
                )
        self.steps += 1
        self.identity = fisher.identity
        weight = (1 - self.decay) / (1 - self.decay**self.steps)
        for name, mean in means.items():
            value = mean.float()
            if name in self._average:
                # lerp is exact for equal ends and for weight 1, so constants stay to the bit.
                self._average[name].lerp_(value, weight)
            else:
                self._average[name] = value

    def corrected(self) -> dict[str, Tensor]:
        r"""The average without the bias of having started from zero.

        Returns:
            Parameter name to a new float32 tensor of the shape of the Fisher's sums, mean per
            unit: :math:`F_t / (1 - \beta^t)`.

        Raises:
            ParameterError: If there was no update yet.
        """
        if not self.steps:
            raise ParameterError("the average is empty; call update(fisher) first.")
        return {name: average.clone() for name, average in self._average.items()}

    @property
    def average(self) -> Mapping[str, Tensor]:
        """What :meth:`corrected` copies: the tensors themselves, which the next update changes."""
        return MappingProxyType(self._average)

    def raw(self) -> dict[str, Tensor]:
        """The average as started from zero.

        Returns:
            Parameter name to a new float32 tensor: :math:`F_t`.
        """
        bias = 1 - self.decay**self.steps
        return {name: average * bias for name, average in self._average.items()}

    def save(self, path: str | Path) -> None:
        """Write the average to a folder of safetensors and JSON.

        Args:
            path: The folder; an average already there is replaced once this one is complete.
                :class:`StoreError` if it can't be written or holds something else.
        """
        write_folder(path, MANIFEST, _OWNED, self._fill)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an average; going on from it gives the same bits as never having stopped.

        Args:
            path: The folder that :meth:`save` wrote.

        Returns:
            The average.

        Raises:
            StoreError: If the folder is missing, damaged or foreign.
        """
        ema = read_folder(path, MANIFEST, cls._read)
        if ema is None:
            raise StoreError(f"{path} has no {MANIFEST}, so there is no average. Check the path.")
        return ema

    @classmethod
    def _read(cls, folder: Path) -> Self:
        with described_by(folder / MANIFEST):
            content = unseal(folder, MANIFEST, kind=FORMAT, version=FORMAT_VERSION)
            ema = cls(content["decay"])
            ema.steps = content["steps"]
            if type(ema.steps) is not int or (ema.steps > 0) != (content["identity"] is not None):
                raise ValueError(f"steps is {ema.steps!r}")
            if content["identity"] is not None:
                ema.identity = Identity.from_json(content["identity"])
                tensors = read_tensors(folder, "ema")
                ema._average = {name: tensors[name] for name in ema.identity.parameters}
                if any(t.dtype != torch.float32 for t in ema._average.values()):
                    raise ValueError("an average is kept in float32")
        return ema

    def __repr__(self) -> str:
        return f"FisherEMA(decay={self.decay}, steps={self.steps})"

    def _fill(self, folder: Path) -> None:
        write_tensors(folder, "ema", self._average)
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "decay": self.decay,
            "steps": self.steps,
            "identity": None if self.identity is None else self.identity.to_json(),
        }
        seal(folder, MANIFEST, content)

"""The cells of a layer × module map: tensors of one module in one layer, pooled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fisherscope.report import text


@dataclass(frozen=True)
class Cell:
    """All tensors of one module in one layer, for one task.

    Attributes:
        task: Task name.
        layer: Layer index; None outside the layers.
        module: Module name.
        n_parameters: Parameters in the cell.
        mean: Mean Fisher per parameter, or None.
        mean_se: Upper bound of its standard error (errors of tensors added up), or None.
        share: Share of the task's trace, or None.
        share_se: Upper bound of the standard error of the share, or None.
        reliable: Whether tensors that hold most of the cell's trace are reliable.
    """

    task: str
    layer: int | None
    module: str
    n_parameters: int
    mean: float | None
    mean_se: float | None
    share: float | None
    share_se: float | None
    reliable: bool

    @property
    def relative_se(self) -> float | None:
        """Standard error over mean.

        Returns:
            A fraction; None without a mean or an error.
        """
        return self.mean_se / self.mean if self.mean and self.mean_se is not None else None

    @property
    def log10(self) -> float | None:
        """Colour value.

        Returns:
            log10 of the mean; None where it is missing or zero.
        """
        return math.log10(self.mean) if self.mean is not None and self.mean > 0 else None

    @property
    def place(self) -> str:
        """The cell in words.

        Returns:
            Text such as ``layer 3 q_proj`` or ``embed``.
        """
        module = named(self.module)
        return module if self.layer is None else f"layer {self.layer} {module}"


def pool(task: str, layer: int | None, module: str, rows: Sequence[Mapping[str, Any]]) -> Cell:
    """Put the tensors of one module together.

    Errors add up, since nothing is known of the correlation between tensors.

    Args:
        task: Task name.
        layer: Layer index; None outside the layers.
        module: Module name.
        rows: Importance rows of the tensors.

    Returns:
        The cell.
    """
    sizes = [int(row.get("n_parameters") or 0) for row in rows]
    n = sum(sizes)
    means = [text.number(row.get("mean")) for row in rows]
    held = [size * mean for size, mean in zip(sizes, means, strict=True) if mean is not None]
    mean = sum(held) / n if n and len(held) == len(rows) else None
    errors = total(
        None if (se := text.number(row.get("mean_se"))) is None else size * se
        for size, row in zip(sizes, rows, strict=True)
    )
    sure = sum(
        size * (value or 0.0)
        for size, value, row in zip(sizes, means, rows, strict=True)
        if row.get("reliable")
    )
    all_sure = all(row.get("reliable") for row in rows)
    return Cell(
        task=task,
        layer=layer,
        module=module,
        n_parameters=n,
        mean=mean,
        mean_se=errors / n if n and errors is not None else None,
        share=total(text.number(row.get("share")) for row in rows),
        share_se=total(text.number(row.get("share_se")) for row in rows),
        reliable=all_sure or sure > 0.5 * sum(held),
    )


def total(values: Iterable[float | None]) -> float | None:
    """A sum that is unknown if one of its terms is.

    Args:
        values: The terms.

    Returns:
        The sum, or None.
    """
    known = list(values)
    return None if None in known else sum(v for v in known if v is not None)


def named(module: str) -> str:
    """A module in running text; a bare number would be read as a value.

    Args:
        module: Module name.

    Returns:
        Text such as ``q_proj`` or ``module 0``.
    """
    return module if module[:1].isalpha() else f"module {module}"

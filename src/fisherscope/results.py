"""What every result has in common: a frozen dataclass with a table in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import torch


class Result:
    """Mixin of the frozen result dataclasses.

    A subclass implements :meth:`to_frame`; the dictionary and the notebook view follow
    from it and from the dataclass fields.
    """

    def to_frame(self) -> pd.DataFrame:
        """The result as one tidy table, a row per number with its uncertainty.

        Returns:
            A new data frame.

        Raises:
            NotImplementedError: If the subclass has no table.
        """
        raise NotImplementedError(f"{type(self).__name__} has no table")

    def to_dict(self) -> dict[str, Any]:
        """The result as plain Python values, ready for JSON.

        Returns:
            One entry per dataclass field; arrays become lists, frames lists of rows.

        Raises:
            TypeError: If the subclass is not a dataclass.
        """
        if not dataclasses.is_dataclass(self):
            raise TypeError(f"{type(self).__name__} is not a dataclass")
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(max_rows=30, escape=True)


def plain(value: Any) -> Any:
    """Turn a value into what ``json.dumps`` takes.

    Args:
        value: Scalars, arrays, frames, dataclasses, mappings and sequences of those.

    Returns:
        The same content in ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool``
        and ``None``; floats that are not finite become ``None``.
    """
    if isinstance(value, Result):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, pd.DataFrame):
        return [plain(row) for row in value.to_dict(orient="records")]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value

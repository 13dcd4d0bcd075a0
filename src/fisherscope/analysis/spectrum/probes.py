"""Random vectors, keyed by (seed, stream, index) and never by a shared generator."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a vector is for; vectors of different streams are independent."""

    CHECK = 0
    PROBE = 1
    SKETCH = 2
    START = 3


def gaussian(seed: int, stream: Stream, indices: Iterable[int], n: int) -> np.ndarray:
    """Standard normal vectors.

    Args:
        seed: Of the estimate.
        stream: What they are for.
        indices: One per vector; the same index gives the same vector in any company.
        n: Length.

    Returns:
        [n, number of indices], one vector per column.
    """
    return np.stack([_generator(seed, stream, i).standard_normal(n) for i in indices], axis=1)


def rademacher(seed: int, stream: Stream, indices: Iterable[int], n: int) -> np.ndarray:
    """Vectors of independent fair signs: for a diagonal matrix they give the trace exactly.

    Args:
        seed: Of the estimate.
        stream: What they are for.
        indices: One per vector; the same index gives the same vector in any company.
        n: Length.

    Returns:
        [n, number of indices], one vector per column, in {-1.0, 1.0}.
    """
    bits = [_generator(seed, stream, i).integers(0, 2, n, dtype=np.int8) for i in indices]
    return 2.0 * np.stack(bits, axis=1) - 1.0


def _generator(seed: int, stream: Stream, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), index)))

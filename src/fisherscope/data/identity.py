"""What does not depend on the order of the data: hashes, halves and keyed random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from fisherscope.data.examples import Example
from fisherscope.errors import DataError, ParameterError

_MODULUS = 2**128
_WORD = 2**64
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def content_hash(example: Example) -> int:
    """Hash everything that an example is made of.

    Args:
        example: The example, on any device.

    Returns:
        An integer below 2**128: blake2b over the id and over name, dtype, shape and bytes
        of every input and of the labels. The order of the inputs does not matter.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, example.id.encode("utf-8", "surrogatepass"))
    _feed_content(digest, example)
    return int.from_bytes(digest.digest(), "little")


def content_id(example: Example) -> str:
    """Name an example after its content, whatever its place in the data.

    Args:
        example: The example, on any device; its own id does not matter.

    Returns:
        16 hexadecimal digits: blake2b over name, dtype, shape and bytes of every input and of
        the labels.
    """
    digest = hashlib.blake2b(digest_size=8)
    _feed_content(digest, example)
    return digest.hexdigest()


def fingerprint(examples: Iterable[Example]) -> str:
    """Fingerprint of a set of examples, whatever their order.

    Args:
        examples: The examples.

    Returns:
        32 hexadecimal digits: the sum of the content hashes modulo 2**128. So the
        fingerprint of two disjoint sets together is the sum of theirs.
    """
    return f"{sum(map(content_hash, examples)) % _MODULUS:032x}"


def halves(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Split examples into two disjoint halves that depend on their content only.

    Args:
        examples: At least two examples, in any order.

    Returns:
        The examples with the lower and with the higher content hashes, each sorted by that
        hash. If their number is odd, the first list is longer by one.

    Raises:
        DataError: If there are fewer than two examples.
    """
    if len(examples) < 2:
        raise DataError(
            f"{len(examples)} example(s) cannot be split into halves: pass at least two, "
            "or halves=False"
        )
    ranked = sorted(examples, key=lambda example: (content_hash(example), example.id))
    middle = (len(ranked) + 1) // 2
    return ranked[:middle], ranked[middle:]


def keyed_uniforms(seed: int, ids: Sequence[str], positions: np.ndarray, draw: int) -> np.ndarray:
    """Random numbers that are a function of their key, not of a stream.

    Splitting, padding or reordering the data therefore changes none of them.

    Args:
        seed: Any integer.
        ids: The B ids of the examples.
        positions: Integers of shape [B, S]: the position of every number in its example.
        draw: Number of the draw, from 0.

    Returns:
        float64 of shape [B, S], uniform in [0, 1).

    Raises:
        ParameterError: If ``positions`` is not a table of integers with one row per id.
    """
    positions = np.asarray(positions)
    if positions.ndim != 2 or len(positions) != len(ids) or positions.dtype.kind not in "iu":
        raise ParameterError(
            f"positions of shape {positions.shape} and dtype {positions.dtype} for {len(ids)} "
            "ids: pass integers of shape [len(ids), S]"
        )
    names = np.array([_word(example_id) for example_id in ids], dtype=np.uint64)
    # Every part of the key passes through a full mixing round before the next one joins it:
    # merely added, (position 1, draw 0) and (position 0, draw 1) could collide.
    state = _mix(_integer(seed))
    state = _mix(state ^ names)[:, None]
    state = _mix(state ^ positions.astype(np.int64).astype(np.uint64))
    state = _mix(state ^ _integer(draw))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    # One step of splitmix64: the arithmetic is meant to wrap around.
    value = value + _GAMMA
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _integer(value: int) -> np.ndarray:
    # An array rather than a scalar: numpy warns when scalars wrap around.
    return np.array([int(value) % _WORD], dtype=np.uint64)


def _word(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _feed(digest: hashlib.blake2b, *parts: bytes) -> None:
    # The length goes first: otherwise the parts "ab", "c" and "a", "bc" would hash alike.
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _feed_content(digest: hashlib.blake2b, example: Example) -> None:
    for name in sorted(example.inputs):
        _feed(digest, b"input", name.encode("utf-8", "surrogatepass"))
        _feed_tensor(digest, example.inputs[name])
    if example.labels is not None:
        _feed(digest, b"labels")
        _feed_tensor(digest, example.labels)


def _feed_tensor(digest: hashlib.blake2b, tensor: torch.Tensor) -> None:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    _feed(digest, str(tensor.dtype).encode(), str(tuple(tensor.shape)).encode(), data)

"""Cuts the requested parameters into parts whose sums fit into the memory given."""

from __future__ import annotations

from transformers.utils.hub import convert_file_size_to_int

from fisherscope.errors import ParameterError
from fisherscope.preparation import Prepared
from fisherscope.structures import KFACFisher
from fisherscope.structures.accumulation import outline


def sums_bytes(prepared: Prepared, basis: KFACFisher | None = None) -> dict[tuple[str, ...], int]:
    """Memory of the sums, without allocating them.

    Args:
        prepared: The request.
        basis: KFAC whose eigenvectors an EKFAC uses. Default: ``None``.

    Returns:
        Names of parameters that can't be estimated apart, to bytes; in the model's order.
    """
    unit, parameters = prepared.config.unit, prepared.parameters
    empty = outline(prepared.spec, parameters, prepared.coverage, unit, basis)
    sizes = {key: total.numel() * total.element_size() for key, total in empty.sums.items()}
    together: dict[str, tuple[str, ...]] = {name: (name,) for name in parameters}
    for block in empty.layout:
        names = dict.fromkeys(n for m in (*block.names, block.inputs) if m for n in together[m])
        for name in names:
            together[name] = tuple(names)
    found = dict.fromkeys(together.values(), 0)
    for key, size in sizes.items():
        found[together[key if key in together else key.rpartition(":")[0]]] += size
    return found


def partition(
    prepared: Prepared, limit: int | str | None, basis: KFACFisher | None = None
) -> list[tuple[str, ...]]:
    """Parts of the parameters, in the model's order, each within the limit.

    Args:
        prepared: The request.
        limit: Bytes, or text such as ``"8GB"``; ``None`` for one part.
        basis: KFAC whose eigenvectors an EKFAC uses. Default: ``None``.

    Returns:
        Names of the parameters of each part.

    Raises:
        ParameterError: If the limit is no size, or too small for one block.
    """
    if limit is None:
        return [tuple(prepared.parameters)]
    try:
        most = convert_file_size_to_int(limit)
    except ValueError as error:
        raise ParameterError(
            f"memory_limit={limit!r} is no size; give bytes, or text such as '8GB'"
        ) from error
    parts: list[list[str]] = [[]]
    used = 0
    for names, size in sums_bytes(prepared, basis).items():
        if size > most:
            raise ParameterError(
                f"memory_limit={limit!r} is too small: the sums of {', '.join(names[:3])} alone "
                f"take {size:,} bytes; raise it, leave the parameter out, or choose a smaller "
                "structure (for factors: widest=)"
            )
        if parts[-1] and used + size > most:
            parts.append([])
            used = 0
        parts[-1] += names
        used += size
    return [tuple(part) for part in parts]

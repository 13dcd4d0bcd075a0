"""Cuts the requested parameters into parts whose sums fit into the memory given."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fisherscope import specs
from fisherscope.arguments import size_in_bytes
from fisherscope.errors import ParameterError
from fisherscope.preparation import Prepared
from fisherscope.structures import KFACFisher
from fisherscope.structures.accumulation import outline
from fisherscope.structures.rooms import Disk, Room, memory


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


@dataclass(frozen=True)
class Budget:
    """How much memory the sums may take, and where the others are.

    Attributes:
        limit: Most bytes of sums in work; ``None`` for no limit.
        folder: For sums on disk. ``None``: in memory; where all sums of a model on the CPU are
            more than the limit, finished ones go to the system's folder for temporary files.
    """

    limit: int | None = None
    folder: str | Path | None = None

    @classmethod
    def of(cls, memory_limit: int | str | None, offload_folder: str | Path | None) -> Budget:
        """What the arguments of these names say.

        Args:
            memory_limit: Bytes, or text such as ``"8GB"``.
            offload_folder: A folder.

        Returns:
            The budget.

        Raises:
            ParameterError: If one is no size, or the other no folder.
        """
        limit = size_in_bytes("memory_limit", memory_limit)
        if offload_folder is not None and not (
            isinstance(offload_folder, (str, Path)) and str(offload_folder).strip()
        ):
            raise ParameterError(f"offload_folder={offload_folder!r} is no folder; give its path")
        return cls(limit, offload_folder)

    def parts(self, prepared: Prepared, basis: KFACFisher | None = None) -> list[tuple[str, ...]]:
        """Parts of the parameters, in the model's order, each within the limit.

        Args:
            prepared: The request.
            basis: KFAC whose eigenvectors an EKFAC uses. Default: ``None``.

        Returns:
            Names of the parameters of each part.

        Raises:
            ParameterError: If the limit is too small for one block.
        """
        if self.limit is None:
            return [tuple(prepared.parameters)]
        parts: list[list[str]] = [[]]
        used = 0
        for names, size in sums_bytes(prepared, basis).items():
            if size > self.limit:
                raise ParameterError(
                    f"memory_limit={self.limit!r} is too small: the sums of "
                    f"{', '.join(names[:3])} alone take {size:,} bytes; raise it, leave the "
                    "parameter out, or choose a smaller structure (for factors: widest=)"
                )
            if parts[-1] and used + size > self.limit:
                parts.append([])
                used = 0
            parts[-1] += names
            used += size
        return [tuple(part) for part in parts]

    def disk(self, prepared: Prepared, *, based: bool = False, ranks: int = 1) -> Disk | None:
        """Where finished sums are kept, once there is known to be room for them.

        Args:
            prepared: The request.
            based: As for :meth:`kept_bytes`. Default: ``False``.
            ranks: Processes that need as much at the same time. Default: 1.

        Returns:
            A disk, or ``None`` for memory. One without room for them raises
            :class:`ParameterError`.
        """
        for stage in stages_of(prepared)[based:]:
            self.parts(stage)  # a limit that is too small is said first
        needed = self.kept_bytes(prepared, based=based)
        if needed is None:
            return None
        disk = Disk(self.folder if self.folder is not None else tempfile.gettempdir())
        disk.check(needed * ranks)
        return disk

    def kept_bytes(self, prepared: Prepared, *, based: bool = False) -> int | None:
        """What sums take on disk.

        Args:
            prepared: The request.
            based: Whether an EKFAC is given its eigenvectors. Default: ``False``.

        Returns:
            Bytes; ``None`` if they stay in memory.
        """
        *factors, last = [sum(sums_bytes(stage).values()) for stage in stages_of(prepared)[based:]]
        # Factors and as many eigenvectors, then the sums over all examples and over halves.
        held = 2 * sum(factors) + last * (3 if prepared.config.halves else 1)
        here = is_here(prepared)
        if self.folder is None and not (here and self.limit is not None and held > self.limit):
            return None
        # What a batch adds to before it is known to be finite is on disk where the sums are.
        apart = last if is_apart(prepared) and here and self.limit is None else 0
        return held + apart

    def room(self, disk: Disk | None) -> Room:
        """Where sums are while they are added to.

        Args:
            disk: Where finished ones are kept.

        Returns:
            The disk, unless a limit keeps what is in work small.
        """
        return memory if disk is None or self.limit is not None else disk.zeros


def is_here(prepared: Prepared) -> bool:
    """Whether a model is on the CPU, where finished sums are kept.

    Args:
        prepared: The request.

    Returns:
        Whether its parameters are.
    """
    return next(iter(prepared.parameters.values())).device.type == "cpu"


def is_apart(prepared: Prepared) -> bool:
    """Whether each batch is summed apart until it is known to be finite.

    Args:
        prepared: The request.

    Returns:
        Whether it may have to be thrown away.
    """
    return prepared.config.on_nonfinite == "skip" or prepared.coverage.scale is not None


def stages_of(prepared: Prepared) -> list[Prepared]:
    """The passes over all examples that a structure takes one after another.

    Args:
        prepared: The request.

    Returns:
        Itself; for an EKFAC, the KFAC in whose eigenbasis it is comes before.
    """
    if not isinstance(prepared.spec, specs.EKFAC):
        return [prepared]
    spec = specs.KFAC(**asdict(prepared.spec))
    identity = replace(prepared.identity, structure=str(spec))
    config = replace(prepared.config, structure=spec)
    return [replace(prepared, config=config, identity=identity), prepared]

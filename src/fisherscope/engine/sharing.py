"""Which layers are called with the very same input: projections of one block usually are."""

from __future__ import annotations

from torch import Tensor


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same place, unchanged in between.

    Args:
        a: A tensor.
        b: A tensor; both must be alive, or the place could have been used twice.

    Returns:
        Whether they are one tensor.
    """
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a._version == b._version
    )


class SharedInputs:
    """Watches layer inputs and groups the layers that got the same one right in turn."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._groups: list[list[str]] = []
        self._calls: dict[str, int] = {}

    def __call__(self, name: str, a: Tensor, mask: Tensor | None) -> None:
        """Take the input of a layer.

        Args:
            name: Requested name of its weight.
            a: Input rows.
            mask: Unused.
        """
        del mask
        self._calls[name] = self._calls.get(name, 0) + 1
        if self._last is not None and identical(self._last, a):
            self._groups[-1].append(name)
        else:
            self._groups.append([name])
        self._last = a

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Groups of several weights; a weight that is used several times is in none.

        Returns:
            Names in the order of their calls.
        """
        once = [[n for n in group if self._calls[n] == 1] for group in self._groups]
        return tuple(tuple(group) for group in once if len(group) > 1)

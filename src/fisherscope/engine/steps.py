"""Forward and backward passes, where ranks have to take them together.

The layers of a sharded model fetch their weights from all ranks at every pass. So all ranks take
the same passes at the same time, however many each of them needs: before each pass they tell one
another what they are about to do, and who needs another pass, or none, takes one that counts
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from fisherscope.distributed import Ranks

_FORWARD, _BACKWARD, _NONE = 0, 1, 2


class Steps:
    """Passes of a model that needs nobody else."""

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """Take a forward pass.

        Args:
            run: Calls the model.

        Returns:
            What it returned.
        """
        return run()

    def backward(self, walk: Callable[[bool], None]) -> None:
        """Take a backward pass.

        Args:
            walk: Takes it; told whether the graph has to be kept in any case.
        """
        walk(False)

    @contextmanager
    def round(self) -> Generator[None]:
        """Take the passes of a batch, or of no batch, inside ``with``.

        Yields:
            Nothing.
        """
        yield


class InStep(Steps):
    """Passes of a sharded model; each rank does the same between the same rounds.

    Args:
        ranks: All ranks.
        spare: A forward pass that nobody observes; its output has a graph.
    """

    def __init__(self, ranks: Ranks, spare: Callable[[], Tensor]):
        self._ranks, self._spare = ranks, spare
        self._last: Tensor | None = None

    def forward(self, run: Callable[[], Tensor]) -> Tensor:  # noqa: D102
        self._meet(_FORWARD)
        return self._take(run)

    def backward(self, walk: Callable[[bool], None]) -> None:  # noqa: D102
        self._meet(_BACKWARD)
        with self._ranks.in_step():
            walk(True)  # another rank may have more of them to take

    @contextmanager
    def round(self) -> Generator[None]:  # noqa: D102
        try:
            yield
        except BaseException:
            if not self._ranks.torn:
                self._meet(_NONE)
            raise
        else:
            self._meet(_NONE)
        finally:
            self._last = None

    def _take(self, run: Callable[[], Tensor]) -> Tensor:
        with self._ranks.in_step():
            self._last = run()
        return self._last

    def _meet(self, mine: int) -> None:
        """Do what others need until it is this rank's turn."""
        while (turn := self._ranks.least(mine)) != mine:
            if turn == _FORWARD:
                self._take(self._spare)
                continue
            last = self._last
            assert last is not None
            with self._ranks.in_step():
                last.backward(torch.zeros_like(last), retain_graph=True)

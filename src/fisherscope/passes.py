"""One pass over examples: scores into sums, with progress, checkpoints and resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fisherscope.checkpoint import Checkpoint, Pace
from fisherscope.data import Example, batches, fingerprint
from fisherscope.defaults import FisherConfig
from fisherscope.distributed import Ranks
from fisherscope.engine.away import is_sharded
from fisherscope.engine.coverage import SLOW
from fisherscope.engine.layers import UnexpectedShapeError
from fisherscope.engine.sweep import Sweep
from fisherscope.errors import IdentityError, NonFiniteError
from fisherscope.interruption import Noted, whole_batches
from fisherscope.preparation import Prepared
from fisherscope.structures import Fisher, KFACFisher, Ledger, load
from fisherscope.structures.accumulation import Accumulator, accumulator
from fisherscope.structures.folder import stamp
from fisherscope.structures.io import MANIFEST
from fisherscope.structures.rooms import Room, memory
from fisherscope.structures.spread import Owners, hollow, placeholder

TOKENS = 4096
"""Padded tokens of a batch, where no ``batch_size`` is given."""


def rounds(
    examples: Sequence[Example], config: FisherConfig, world: int
) -> list[list[list[Example]]]:
    """Cut examples into batches, as many at a time as there are ranks.

    Args:
        examples: The examples.
        config: The options.
        world: How many ranks there are.

    Returns:
        Rounds of batches; the same on each rank.
    """
    budget = TOKENS
    if world > 1 and config.unit != "batch":
        # A few examples make batches for all; for "batch" they would be other units.
        budget = max(1, min(budget, -(-sum(e.length for e in examples) // world)))
    groups = batches(examples, config.batch_size, budget) if examples else []
    return [groups[start : start + world] for start in range(0, len(groups), world)]


# States that an estimate of several passes keeps in folders of a checkpoint.
_WITHIN = ("part-", "half-", "factors", "eigenv", "finite")


def otherwise_cut(place: Path) -> IdentityError:
    """What is wrong with a checkpoint of other passes.

    Args:
        place: The checkpoint.

    Returns:
        The error.
    """
    return IdentityError(
        f"the checkpoint {place} is that of an estimate with another memory_limit, other halves or "
        "another structure: give those of then, delete it, or give another folder"
    )


class Pass:
    """One pass over some examples, resumable.

    Args:
        prepared: The request.
        examples: Its examples or some of them.
        checkpoint: Where and how often the state is kept, or ``None``.
        progress: Show a progress bar.
        title: Of the bar.
        basis: KFAC whose eigenvectors an EKFAC uses. Default: ``None``.
        ranks: The processes that share the pass; each takes every so manieth batch. Default:
            this one.
        owners: Which rank keeps which sums; the others then hold zeros in their place. Default:
            ``None``, each keeps all.
        room: Where the sums are. Default: in memory.
    """

    def __init__(
        self,
        prepared: Prepared,
        examples: Sequence[Example],
        checkpoint: Checkpoint | None,
        progress: bool,
        title: str,
        basis: KFACFisher | None = None,
        ranks: Ranks | None = None,
        owners: Owners | None = None,
        room: Room = memory,
    ):
        self.owners, self.room = owners, room
        self.prepared, self.examples = prepared, list(examples)
        self.checkpoint, self.progress, self.title = checkpoint, progress, title
        self.basis = basis
        self.parts: list[tuple[list[Example], np.ndarray]] = []
        self.skipped: list[str] = []
        self.elsewhere: dict[str, Tensor] = {}
        self.ranks = ranks or Ranks(together=False)
        self.sums: Mapping[str, Tensor] = {}
        self.earlier = self.ranks.once(self._earlier)
        self.accumulator = self._opened()
        self.sums = {}  # they have been gone on from
        known: set[str] = set()
        if self.earlier is not None:
            known = {*self.earlier.ledger.ids, *self.earlier.skipped}
        self.left = rounds(
            [e for e in self.examples if e.id not in known], prepared.config, self.ranks.world
        )
        self.saved = 0  # batches that are in the sums last written
        self.written = self.earlier is not None and self.ranks.first
        self.largest = len(self.examples)  # batch that fits into memory, as far as is known

    def _opened(self) -> Accumulator:
        found: list[Accumulator] = []
        self.ranks.each(lambda: found.append(self._accumulator()))
        earlier = self.earlier
        if earlier is not None and earlier.layout != found[0].layout:
            self._covered_alike(earlier)
            self.earlier = None  # as it was before a layer turned out to be used unlike
        elif earlier is not None:
            with self._refusing("holds another kind of sums"):
                self.ranks.once(lambda: found[0].resume(self.sums, earlier.layout))
        return found[0]

    def _covered_alike(self, earlier: Fisher) -> None:
        """Go on with the slow path of those parameters for which it was found to be needed."""
        known = self.prepared.coverage.slow
        further = {}
        for name, text in earlier.coverage.items():
            before, slow, reason = text.partition(f"{SLOW}: ")
            if slow and name not in known:
                further[name] = reason.removesuffix(")" if before else "")
        if further:
            raise UnexpectedShapeError("an interrupted pass has found out more", further)

    @contextmanager
    def _refusing(self, why: str) -> Generator[None]:
        """Say which folder it is that doesn't belong to this estimate."""
        assert self.checkpoint is not None
        try:
            yield
        except IdentityError as error:
            raise IdentityError(
                f"the checkpoint {self.checkpoint.path} {why}: {error} Give the memory_limit and "
                "halves of then, delete it, or give another folder."
            ) from error

    def _accumulator(self) -> Accumulator:
        p = self.prepared
        unit = p.config.unit
        return accumulator(p.spec, p.parameters, p.coverage, unit, self.basis, self.room)

    def _earlier(self) -> Fisher | None:
        """What an interrupted pass has left."""
        if self.checkpoint is None:
            return None
        place = self.checkpoint.path
        bare = not place.is_dir() or not any(place.iterdir())
        if stamp(place, MANIFEST) is None:
            if bare:
                return None
            if any(p.name.startswith(_WITHIN) for p in place.iterdir()):
                raise otherwise_cut(place)
        earlier = load(place)
        with self._refusing("is that of another estimate"):
            self.prepared.identity.check(earlier.identity)
        ids = {*earlier.ledger.ids, *earlier.skipped}
        seen = [e for e in self.examples if e.id in ids]
        if fingerprint(seen) != earlier.identity.data_fingerprint or len(seen) != len(ids):
            raise IdentityError(
                f"the checkpoint {place} was made from other examples "
                "(data_fingerprint differs); delete it, or give another folder"
            )
        # The sums stay with this rank; the others need the books.
        self.sums = dict(earlier.sums)
        for key, total in self.sums.items():
            earlier.sums[key] = placeholder(total)
        return earlier

    def finish(self) -> Fisher:
        """Run to the end.

        Returns:
            The Fisher over all examples.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed; the state so far is in the folder.
            SystemExit: If SIGTERM has arrived; the state so far is in the folder.
        """
        p, ranks = self.prepared, self.ranks
        tokens = [sum(p.likelihood.tokens(e) for g in groups for e in g) for groups in self.left]
        pace = Pace(self.checkpoint)
        together = ranks if is_sharded(p.model) else None
        spare = min(self.examples, key=lambda e: e.length, default=None)
        sweep = Sweep(p.model, p.likelihood, p.coverage, together, spare)
        shown = self.progress and ranks.first
        bar = tqdm(total=sum(tokens), desc=self.title, unit="token", disable=not shown)
        try:
            with bar, sweep, whole_batches(self.checkpoint is not None) as noted:
                for groups, count in zip(self.left, tokens, strict=True):
                    said = ranks.each(lambda g=groups: self._round(sweep, g, pace, noted))
                    bar.update(count)
                    noted.number = next((n for _, n in said if n is not None), None)
                    if self.checkpoint is not None and (said[0][0] or noted.number is not None):
                        self._save(self._joined())
                        self._part()
                        pace.written()
                    noted.obey()
                if self.checkpoint is None:
                    fisher = self._joined(self.owners)
                else:
                    fisher = self._joined()
                    self._save(fisher)
        except (KeyboardInterrupt, SystemExit):
            alone = self.checkpoint is not None and ranks.world == 1
            if alone and len(self.parts) > self.saved and self.accumulator.complete:
                self._save(self._fisher())
            raise
        return fisher if self.owners is None else hollow(fisher, self.owners, ranks.rank)

    def _round(
        self, sweep: Sweep, groups: list[list[Example]], pace: Pace, noted: Noted
    ) -> tuple[bool, int | None]:
        """This rank's batch, if there is one for it; whether to save, and any signal."""
        with sweep.steps.round():
            if self.ranks.rank < len(groups):
                self._batch(sweep, groups[self.ranks.rank])
        return pace.due(), noted.number

    def _save(self, fisher: Fisher) -> None:
        checkpoint = self.checkpoint
        if checkpoint is not None:
            self.ranks.once(lambda: fisher.save(checkpoint.path))
            self.saved, self.written = len(self.parts), self.ranks.first

    def _joined(self, owners: Owners | None = None) -> Fisher:
        """The Fisher over the examples of all ranks, each with the sums of its own."""
        if self.ranks.world > 1:
            self.accumulator.complete = False
            known = {e.id: e for e in self.examples}
            mine = [([e.id for e in group], norms) for group, norms in self.parts]
            books = self.ranks.each(lambda: (mine, self.skipped))
            self._add(owners)
            self.parts = [([known[i] for i in ids], n) for parts, _ in books for ids, n in parts]
            self.skipped = [name for _, skipped in books for name in skipped]
        return self._fisher()

    def _add(self, owners: Owners | None) -> None:
        sums = self.accumulator.sums
        if owners is None:
            self.ranks.sum(sums.values())
            return
        for rank in range(self.ranks.world):
            theirs = [key for key in sums if owners.of(key) == rank]
            self.ranks.sum([sums[key] for key in theirs], to=rank)
            if rank != self.ranks.rank:
                self.elsewhere |= {key: placeholder(sums.pop(key)) for key in theirs}

    def _part(self) -> None:
        """What was joined stays with the first rank; the others begin again from nothing."""
        if not self.ranks.first:
            self.parts, self.skipped, self.saved = [], [], 0
            for total in self.accumulator.sums.values():
                total.zero_()
        self.accumulator.complete = True

    def _batch(self, sweep: Sweep, group: list[Example]) -> None:
        """Take the scores of a batch, in halves if memory runs out."""
        if len(group) <= self.largest and self._fits(sweep, group):
            return
        middle = (len(group) + 1) // 2
        self.largest = min(self.largest, middle)
        if not self.accumulator.complete:
            self._back(sweep)
        self._batch(sweep, group[:middle])
        self._batch(sweep, group[middle:])

    def _back(self, sweep: Sweep) -> None:
        """Half a batch can't be taken out of the sums: go on from those last written again."""
        self.parts, again = self.parts[: self.saved], self.parts[self.saved :]
        del self.accumulator  # before the new one takes the same memory
        self.accumulator = self._accumulator()
        if self.checkpoint is not None and self.written:
            written = load(self.checkpoint.path)
            self.accumulator.resume(written.sums, written.layout)
        for group, _ in again:
            self._batch(sweep, group)

    def _fits(self, sweep: Sweep, group: list[Example]) -> bool:
        try:
            self._score(sweep, group)
        except (MemoryError, RuntimeError) as error:
            halves = len(group) > 1 and self.prepared.config.unit != "batch"  # another unit
            if not (_out_of_memory(error) and halves) or self.ranks.torn:
                raise
            return False
        return True

    def _score(self, sweep: Sweep, group: list[Example]) -> None:
        skips = self.prepared.config.on_nonfinite == "skip"
        # What may have to be thrown away is summed apart.
        apart = skips or self.prepared.coverage.scale is not None
        while True:
            target = self._accumulator() if apart else self.accumulator
            norms, bad, overflow = self._pass(sweep, group, target)
            if not (overflow and sweep.lower_scale()):
                break
            del target  # before the next one takes the same memory
        if bad and not skips:
            low = self.prepared.coverage.scale is not None
            raise NonFiniteError(
                f"the loss or the score of example {', '.join(map(repr, bad[:5]))} is not finite"
                f"{', whatever the loss is scaled by' if low else ''}; look at this example, use "
                f"{'bf16 or fp32' if low else 'fp32'} weights, or pass on_nonfinite='skip'"
            )
        if bad and len(group) > 1:
            del target  # before others take the same memory
            for example in group:
                self._score(sweep, [example])
            return
        if bad:
            self.skipped += bad
            return
        if target is not self.accumulator:
            self.accumulator.absorb(target)
        self.parts.append((group, norms))
        self.accumulator.complete = True

    def _pass(self, sweep: Sweep, group: list[Example], target: Accumulator):
        target.open_batch(len(group), self.prepared.kept_sets, sweep.device)
        loss = sweep.run(
            group,
            self.prepared.labelling,
            target.add,
            inputs=target.inputs if target.needs_inputs else None,
            close=target.close,
        )
        norms = target.batch_norms()
        scores, losses = np.isfinite(norms).all((0, 2)), torch.isfinite(loss).cpu().numpy()
        bad = [e.id for e, good in zip(group, scores & losses, strict=True) if not good]
        return norms, bad, bool((losses & ~scores).any())

    def _fisher(self) -> Fisher:
        p, config = self.prepared, self.prepared.config
        shape = (p.kept_sets, 0, len(p.parameters))
        norms = np.concatenate([np.zeros(shape), *(part for _, part in self.parts)], axis=1)
        done = [example for group, _ in self.parts for example in group]
        groups = [number for number, (group, _) in enumerate(self.parts) for _ in group]
        several = config.fisher_type == "mc" and config.draws > 1
        tokens = np.array([p.likelihood.tokens(e) for e in done], dtype=np.int64)
        skipped = set(self.skipped)
        seen = [*done, *(e for e in self.examples if e.id in skipped)]
        fisher = Fisher.of_structure(p.identity.structure)(
            identity=dataclasses.replace(p.identity, data_fingerprint=fingerprint(seen)),
            sums=self.accumulator.results() | self.elsewhere,
            ledger=Ledger(
                ids=tuple(e.id for e in done),
                tensors=tuple(p.parameters),
                squares=norms.mean(0),
                tokens=tokens,
                draw_variance=norms.var(0, ddof=1) if several else None,
                draw_variance_total=norms.sum(2).var(0, ddof=1) if several else None,
                groups=np.array(groups, dtype=np.int64) if config.unit == "batch" else None,
            ),
            coverage=self.accumulator.coverage_text(),
            n_units=len(done) if config.unit in {"example", "batch"} else int(tokens.sum()),
            skipped=tuple(self.skipped),
            layout=self.accumulator.layout,
        )
        if self.earlier is None:
            return fisher
        return dataclasses.replace(fisher, **self.earlier.books(fisher))


def _out_of_memory(error: Exception) -> bool:
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or "can't allocate memory" in str(error).lower()

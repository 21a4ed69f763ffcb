"""The order of training samples: a function of the seed and the step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

from unidiff_core.foundation import randomness

CHUNK = 2**16
"""Samples of an epoch whose order is computed at once."""


@dataclass(frozen=True)
class Place:
    """Which samples form a micro-batch, and where it stands in the run.

    Attributes:
        rows: ``[b]``, of the data set.
        index: ``[b]``, in the global batch.
        step: optimizer step.
        batch: rows of the whole global batch; this micro-batch is all of it if not given.
        is_padding: whether the samples count for nothing: they are there so that a process has a micro-batch at all.
        seed: of what is drawn of a sample at this use; without one nothing is.
    """

    rows: Tensor
    index: Tensor
    step: int
    batch: Tensor | None = None
    is_padding: bool = False
    seed: int | None = None

    def choose(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which of a sample's alternatives is used here: drawn by the randomness rule, or without a seed the first.

        Args:
            counts: modality → how many each sample has, int64 ``[b]``.

        Returns:
            Modality → int64 ``[b]``, from 0.
        """
        if self.seed is None:
            return {name: torch.zeros_like(count) for name, count in counts.items()}
        return {
            name: (randomness.uniform(self.seed, "alternative", name, self.step, self.index) * count).long()
            for name, count in counts.items()
        }


def num_micro_batches(batch_size: int, micro_batch_size: int, world: int) -> int:
    """Into how many micro-batches each of `world` processes splits its share of a global batch.

    Raises:
        ValueError: if it does not split exactly.
    """
    if batch_size % (micro_batch_size * world):
        raise ValueError(
            f"a global batch of {batch_size} does not split into micro-batches of {micro_batch_size} on {world} "
            "processes; change data.batch_size or data.micro_batch_size"
        )
    return batch_size // (micro_batch_size * world)


class GlobalOrder(Sampler[Place]):
    """Micro-batches of global batches: those of one epoch each time it is iterated over, or without end.

    Each epoch is a permutation drawn by the randomness rule, and global batch k is a function of (seed, k): which
    process, with what micro-batch, takes which part of it changes nothing, and a resumed run starts at its step.

    Args:
        size: of the data set.
        batch_size: of the global batch.
        micro_batch_size: of one process at a time.
        seed: of the run.
        rank, world: this process and how many there are.
        first_step: step to start at, asked for at the start of each iteration: an epoch begins where another ended.
        num_steps: of one iteration; without end if not given.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        micro_batch_size: int,
        seed: int,
        rank: int,
        world: int,
        first_step: int | Callable[[], int],
        num_steps: int | None = None,
    ) -> None:
        num_micro_batches(batch_size, micro_batch_size, world)
        if size < batch_size:
            raise ValueError(f"the data set has {size} samples, fewer than the global batch of {batch_size}")
        self.size, self.batch_size, self.micro_batch_size = size, batch_size, micro_batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.first_step, self.num_steps = first_step, num_steps
        self._kept = (-1, -1), torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Place]:
        first = self.first_step() if callable(self.first_step) else self.first_step
        for step in itertools.islice(itertools.count(first), self.num_steps):
            batch = self._global_batch(step)
            for index in torch.arange(self.batch_size).split(self.micro_batch_size)[self.rank :: self.world]:
                yield Place(batch[index], index, step, batch, seed=self.seed)

    def __len__(self) -> int:
        if self.num_steps is None:
            raise TypeError("an order without end has no length")
        return self.num_steps * num_micro_batches(self.batch_size, self.micro_batch_size, self.world)

    def _global_batch(self, step: int) -> Tensor:
        """Rows of global batch `step`; it may span two epochs."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = places // self.size, places % self.size
        rows = torch.empty_like(places)
        for epoch, chunk in sorted(set(zip(epochs.tolist(), (offsets // CHUNK).tolist(), strict=True))):
            here = (epochs == epoch) & (offsets // CHUNK == chunk)
            rows[here] = self._chunk(epoch, chunk)[offsets[here] % CHUNK]
        return rows

    def _chunk(self, epoch: int, chunk: int) -> Tensor:
        """A stretch of an epoch's order, computed at once; the last one is kept."""
        if self._kept[0] != (epoch, chunk):
            places = torch.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, self.size))
            self._kept = (epoch, chunk), randomness.permutation(self.seed, "order", epoch, self.size, places)
        return self._kept[1]


class InOrder(Sampler[Place]):
    """All samples once, in order: validation. Rank r takes every world-th micro-batch.

    Every process gets the same number of them, since processes wait for each other at each; who has none left gets one
    of padding.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int, world: int) -> None:
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world

    def __iter__(self) -> Iterator[Place]:
        for first in range(0, len(self) * self.world * self.batch_size, self.world * self.batch_size):
            begin = first + self.rank * self.batch_size
            rows = torch.arange(begin, max(begin, min(begin + self.batch_size, self.size)))
            if len(rows):
                yield Place(rows, rows, 0)
            else:
                yield Place(torch.tensor([0]), torch.tensor([0]), 0, is_padding=True)

    def __len__(self) -> int:
        return -(-self.size // (self.batch_size * self.world))

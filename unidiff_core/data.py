"""Data modules: stored latents, in an order that is a function of the seed and the step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from safetensors.torch import load
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from unidiff_core import randomness
from unidiff_core.batch import Batch
from unidiff_core.shard import STORED, read_shards


@dataclass(frozen=True)
class Place:
    """Which samples form a micro-batch, and where it stands in the run."""

    rows: Tensor
    index: Tensor
    step: int


class GlobalOrder(Sampler[Place]):
    """Micro-batches of global batches, without end.

    Each epoch is a permutation drawn by the randomness rule, and global batch k is a function of (seed, k): which
    process, with what micro-batch, takes which part of it changes nothing, and a resumed run starts at its step.

    Args:
        size: of the data set.
        batch_size: of the global batch.
        micro_batch_size: of one process at a time.
        seed: of the run.
        rank, world: this process and how many there are.
        first_step: step to start at.
    """

    def __init__(
        self, size: int, batch_size: int, *, micro_batch_size: int, seed: int, rank: int, world: int, first_step: int
    ) -> None:
        if batch_size % (micro_batch_size * world):
            raise ValueError(
                f"a global batch of {batch_size} does not split into micro-batches of {micro_batch_size} on {world} "
                "processes; change data.batch_size or data.micro_batch_size"
            )
        if size < batch_size:
            raise ValueError(f"the data set has {size} samples, fewer than the global batch of {batch_size}")
        self.size, self.batch_size, self.micro_batch_size = size, batch_size, micro_batch_size
        self.seed, self.rank, self.world, self.first_step = seed, rank, world, first_step
        self._epoch = -1, torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Place]:
        for step in itertools.count(self.first_step):
            batch = self._global_batch(step)
            for index in torch.arange(self.batch_size).split(self.micro_batch_size)[self.rank :: self.world]:
                yield Place(batch[index], index, step)

    def _global_batch(self, step: int) -> Tensor:
        """Rows of global batch `step`; it may span two epochs."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = range(int(places[0]) // self.size, int(places[-1]) // self.size + 1)
        parts = [self._order(epoch)[places[places // self.size == epoch] % self.size] for epoch in epochs]
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if self._epoch[0] != epoch:
            self._epoch = epoch, randomness.permutation(self.seed, "order", epoch, self.size)
        return self._epoch[1]


class InOrder(Sampler[Place]):
    """All samples once, in order: validation. Rank r takes every world-th micro-batch."""

    def __init__(self, size: int, batch_size: int, *, rank: int, world: int) -> None:
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world

    def __iter__(self) -> Iterator[Place]:
        for rows in torch.arange(self.size).split(self.batch_size)[self.rank :: self.world]:
            yield Place(rows, rows, 0)

    def __len__(self) -> int:
        return len(range(self.rank, -(-self.size // self.batch_size), self.world))


class StoredSamples(Dataset[Batch]):
    """A folder of encoded shards in memory, indexed by `Place`."""

    def __init__(self, folder: str) -> None:
        samples = [load(sample[STORED]) for sample in read_shards(folder) if STORED in sample]
        if not samples:
            raise ValueError(f"the shards in {folder} hold no stored latents; make them with `unidiffuser encode`")
        self.stored = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def __len__(self) -> int:
        return len(next(iter(self.stored.values())))

    def __getitem__(self, place: Place) -> Batch:
        stored = {key: value[place.rows].float() for key, value in self.stored.items()}
        return Batch(place.index, place.step, stored)


class StoredData(pl.LightningDataModule):
    """Latents that `unidiffuser encode` stored, kept in memory.

    Args:
        train: folder of encoded shards.
        validation: another, for `validate`, `test` and the validation loss.
        batch_size: samples of an optimizer step over all processes.
        micro_batch_size: samples of one process at a time; all of its share if not given. Set
            ``trainer.accumulate_grad_batches`` to batch_size / (micro_batch_size · processes).
        seed: of the order.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.validation, self.seed = train, validation, seed
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches from the trainer's present step on."""
        samples = StoredSamples(self.train)
        rank, world = self._processes()
        order = GlobalOrder(
            len(samples),
            self.batch_size,
            micro_batch_size=self.micro_batch_size or self.batch_size // world,
            seed=self.seed,
            rank=rank,
            world=world,
            first_step=self.trainer.global_step if self.trainer else 0,
        )
        return DataLoader(samples, sampler=order, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The validation shards once."""
        if self.validation is None:
            return []
        samples = StoredSamples(self.validation)
        rank, world = self._processes()
        return DataLoader(samples, sampler=InOrder(len(samples), 256, rank=rank, world=world), batch_size=None)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """As for validation."""
        return self.val_dataloader()

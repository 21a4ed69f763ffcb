"""Shards as columns in memory: what codecs' networks are trained on. Data that does not fit is encoded in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unidiff_core.data.damage import FAIL, Damage
from unidiff_core.data.salvage import parse_shards
from unidiff_core.data.shard import Endings, listed

Columns = dict[str, Any]
"""name → tensor ``[n, ...]`` or a list of n."""


class Batches(Dataset[Columns]):
    """Whole batches by a list of indices, which is many times faster than collating samples."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, indices: list[int]) -> Columns:
        return {
            name: column[indices] if isinstance(column, Tensor) else [column[i] for i in indices]
            for name, column in self.columns.items()
        }

    def split(self, held_out: list[bool]) -> tuple[Batches, Batches]:
        """The part that is trained on, and the part that is held out."""
        parts = ([i for i, flag in enumerate(held_out) if flag is wanted] for wanted in (False, True))
        training, rest = (Batches(self[part]) for part in parts)
        return training, rest


class Shuffled:
    """Index batches in an order that is a function of seed and epoch, so that a resumed run goes on alike."""

    def __init__(self, length: int, batch_size: int, seed: int | None) -> None:
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.length)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for start in range(0, self.length, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


class ShardData(pl.LightningDataModule, ABC):
    """A training and a held-out part, carved out of the training shards.

    Held out are the last samples, which where shards are in order are of other sources, unless `is_held_out` says
    otherwise.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        batch_size: samples per step.
        holdout: share that is held out, 0..1.
        seed: of the order.
        damage: what is done about shards and samples that cannot be read.
    """

    def __init__(
        self, folder: str, batch_size: int = 128, holdout: float = 0.05, seed: int = 0, damage: Damage = FAIL
    ) -> None:
        super().__init__()
        self.folder, self.batch_size, self.holdout, self.seed = folder, batch_size, holdout, seed
        self.damage = damage
        self.training: Batches | None = None
        self.held_out: Batches | None = None

    @abstractmethod
    def read(self) -> Columns:
        """All samples."""

    def parsed(self, *members: tuple[Endings, Callable[[bytes], Any]]) -> Iterator[tuple[Any, ...]]:
        """What is made of the members of each sample that has them all. At the end it warns of how many were left out.

        Args:
            *members: an ending, or several of which a sample has one, and what reads the member's content.

        Raises:
            ValueError: if one cannot be read and none may be lost, or no sample has them; names it.
            LossError: if more is lost than may be.
        """
        endings = [ending for ending, _ in members]
        firsts = [listed(ending)[0] for ending in endings]

        def read(sample: Mapping[str, Any]) -> tuple[Any, ...]:
            return tuple(parse(sample[first]) for first, (_, parse) in zip(firsts, members, strict=True))

        yield from parse_shards(self.folder, endings, read, damage=self.damage)

    def is_held_out(self, columns: Columns, num: int) -> list[bool]:
        """Which of the `num` samples are held out."""
        first = round(num * (1 - self.holdout))
        return [i >= first for i in range(num)]

    def setup(self, stage: str | None = None) -> None:
        """Read everything, once.

        Raises:
            ValueError: if a sample cannot be read, or nothing is left to train on or to hold out.
        """
        if self.training is not None:
            return
        data = Batches(self.read())
        self.training, self.held_out = data.split(self.is_held_out(data.columns, len(data)))
        if not len(self.training) or not len(self.held_out):
            raise ValueError(
                f"{self.folder} has {len(data)} samples, of which {len(self.held_out)} are held out: too few; "
                "give more data or another share `holdout`"
            )

    def train_dataloader(self) -> DataLoader[Columns]:
        """Shuffled anew every epoch."""
        return self._loader(self.training, self.seed)

    def val_dataloader(self) -> DataLoader[Columns]:
        """The held-out part, in order."""
        return self._loader(self.held_out, None)

    def _loader(self, data: Batches | None, seed: int | None) -> DataLoader[Columns]:
        assert data is not None, "setup() comes first"
        sampler: Any = Shuffled(len(data), self.batch_size, seed)
        return DataLoader(data, sampler=sampler, batch_size=None)

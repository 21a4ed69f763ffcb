"""Shards as columns in memory: what codecs' networks are trained on. Data that does not fit is encoded in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unidiff_core.codec.codec import EmptyRaw
from unidiff_core.data.damage import FAIL, Damage
from unidiff_core.data.salvage import parse_shards
from unidiff_core.data.shard import Endings, listed, numbered_in
from unidiff_core.foundation import randomness
from unidiff_core.foundation.argument import check_shares, check_sizes

Columns = dict[str, Any]
"""name → tensor ``[n, ...]`` or a list of n."""


class Rows(list[int]):
    """Which samples form a batch, and what is drawn of them.

    Args:
        rows: numbers of samples.
        seed: of the draws; without one nothing is drawn.
        epoch: in which they are used.
    """

    def __init__(self, rows: Iterable[int], seed: int | None = None, epoch: int = 0) -> None:
        super().__init__(rows)
        self.seed, self.epoch = seed, epoch


class Alternatives(list[Any]):
    """A column of which a sample may have several values, one being drawn at each use: a list of the first of each.

    Args:
        values: of each sample, one at least.
    """

    def __init__(self, values: Iterable[Sequence[Any]]) -> None:
        self.values = list(values)
        super().__init__(row[0] for row in self.values)

    def drawn(self, rows: Rows, name: str) -> list[Any]:
        """One of each sample's, by the randomness rule: a function of seed, column, epoch and sample.

        The first where nothing is drawn.
        """
        if rows.seed is None:
            return [self[i] for i in rows]
        numbers = randomness.uniform(rows.seed, "alternative", name, rows.epoch, torch.tensor(rows))
        several = [self.values[i] for i in rows]
        return [row[int(number * len(row))] for row, number in zip(several, numbers.tolist(), strict=True)]


class Batches(Dataset[Columns]):
    """Whole batches by a list of indices, which is many times faster than collating samples."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, indices: list[int]) -> Columns:
        rows = indices if isinstance(indices, Rows) else Rows(indices)
        return {
            name: column.drawn(rows, name) if isinstance(column, Alternatives) else _taken(column, rows)
            for name, column in self.columns.items()
        }

    def split(self, held_out: list[bool]) -> tuple[Batches, Batches]:
        """The part that is trained on, and the part that is held out."""
        parts = ([i for i, flag in enumerate(held_out) if flag is wanted] for wanted in (False, True))
        training, rest = (
            Batches({name: _taken(column, part) for name, column in self.columns.items()}) for part in parts
        )
        return training, rest


def _taken(column: Any, rows: list[int]) -> Any:
    """Some samples of a column, with all that they have."""
    if isinstance(column, Tensor):
        return column[list(rows)]
    if isinstance(column, Alternatives):
        return Alternatives(column.values[i] for i in rows)
    return [column[i] for i in rows]


class Shuffled:
    """Batches of `Rows` in an order that is a function of seed and epoch, so that a resumed run goes on alike."""

    def __init__(self, length: int, batch_size: int, seed: int | None) -> None:
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[Rows]:
        order = np.arange(self.length)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for start in range(0, self.length, self.batch_size):
            yield Rows(order[start : start + self.batch_size].tolist(), self.seed, self.epoch)


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
        check_sizes(batch_size=batch_size)
        check_shares(holdout=holdout)
        self.folder, self.batch_size, self.holdout, self.seed = folder, batch_size, holdout, seed
        self.damage = damage
        self.training: Batches | None = None
        self.held_out: Batches | None = None

    @abstractmethod
    def read(self) -> Columns:
        """All samples."""

    def parsed(self, *members: tuple[Endings, Callable[[bytes], Any]]) -> Iterator[tuple[Any, ...]]:
        """What is made of the members of each sample that has them all: of several of one ending, of the first.

        At the end it warns of how many were left out.

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

    def parsed_all(self, *members: tuple[Endings, Callable[[bytes], Any]]) -> Iterator[tuple[list[Any], ...]]:
        """As `parsed`, but of each ending a list, of all that the sample has and that is not empty: `Alternatives`."""
        endings = [ending for ending, _ in members]
        firsts = [listed(ending)[0] for ending in endings]

        def read(sample: Mapping[str, Any]) -> tuple[list[Any], ...]:
            return tuple(_all(sample, first, parse) for first, (_, parse) in zip(firsts, members, strict=True))

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


def _all(sample: Mapping[str, Any], ending: str, parse: Callable[[bytes], Any]) -> list[Any]:
    """What is made of each member of an ending that is not empty.

    Raises:
        EmptyRaw: if all are.
    """
    made, empty = [], None
    for name in numbered_in(sample, ending):
        try:
            made.append(parse(sample[name]))
        except EmptyRaw as error:
            empty = error
    if empty and not made:
        raise empty
    return made

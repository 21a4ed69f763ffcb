"""Training data held in memory, read from shards. For data that does not fit, encode it in pieces first."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unidiff_codecs.image import square
from unidiff_core.store import read_having

Batch = dict[str, Any]
"""``image``: uint8 ``[b, 3, h, w]``; ``text``: b strings."""


class Batches(Dataset[Batch]):
    """Whole batches by a list of indices, which is many times faster than collating samples."""

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, indices: list[int]) -> Batch:
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


class ShardData(pl.LightningDataModule):
    """A training and a held-out part, carved out of the training shards.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        batch_size: samples per step.
        seed: of the order.
    """

    def __init__(self, folder: str, batch_size: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.folder, self.batch_size, self.seed = folder, batch_size, seed
        self.training: Batches | None = None
        self.held_out: Batches | None = None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled anew every epoch."""
        return self._loader(self.training, self.seed)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The held-out part, in order."""
        return self._loader(self.held_out, None)

    def _loader(self, data: Batches | None, seed: int | None) -> DataLoader[Batch]:
        assert data is not None, "setup() comes first"
        sampler: Any = Shuffled(len(data), self.batch_size, seed)
        return DataLoader(data, sampler=sampler, batch_size=None)

    def _keep(self, data: Batches, held_out: list[bool]) -> None:
        self.training, self.held_out = data.split(held_out)
        if not len(self.training) or not len(self.held_out):
            raise ValueError(
                f"{self.folder} has {len(data)} samples, of which {len(self.held_out)} are held out: too few; "
                "give more data or another share `holdout`"
            )


class ImageData(ShardData):
    """Images. Held out: the last samples, which where shards are in order are other sources.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        size: images are cropped and resized to this side, pixels.
        batch_size: samples per step.
        holdout: share that is held out, 0..1.
        image: member that holds the image. Samples without one are left out.
        seed: of the order.
    """

    def __init__(
        self, folder: str, size: int, batch_size: int = 128, holdout: float = 0.05, image: str = "png", seed: int = 0
    ) -> None:
        super().__init__(folder, batch_size, seed)
        self.size, self.holdout, self.image = size, holdout, image

    def setup(self, stage: str | None = None) -> None:
        """Read everything."""
        if self.training is not None:
            return
        data = self._read()
        first = round(len(data) * (1 - self.holdout))
        self._keep(data, [i >= first for i in range(len(data))])

    def _read(self) -> Batches:
        return Batches({"image": _stacked([self._pixels(row) for row in read_having(self.folder, self.image)])})

    def _pixels(self, row: dict[str, bytes]) -> np.ndarray:
        image = Image.open(io.BytesIO(row[self.image])).convert("RGB")
        return np.asarray(square(image, self.size)).transpose(2, 0, 1)


class PairData(ImageData):
    """Images with their captions. Held out: the last samples, which where shards are in order are other sources.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        size: images are cropped and resized to this side, pixels.
        batch_size: samples per step.
        holdout: share that is held out, 0..1.
        image: member that holds the image. Samples that lack it or the caption are left out.
        text: member that holds the caption.
        seed: of the order.
    """

    def __init__(
        self,
        folder: str,
        size: int,
        batch_size: int = 128,
        holdout: float = 0.05,
        image: str = "png",
        text: str = "txt",
        seed: int = 0,
    ) -> None:
        super().__init__(folder, size, batch_size, holdout, image, seed)
        self.text = text

    def _read(self) -> Batches:
        rows = read_having(self.folder, self.image, self.text)
        images, texts = zip(*((self._pixels(row), _caption(row[self.text])) for row in rows), strict=True)
        return Batches({"image": _stacked(images), "text": list(texts)})


class CaptionData(ShardData):
    """Distinct captions. Held out: those that a hash picks, so a held-out caption is never trained on.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        batch_size: captions per step.
        holdout: share that is held out, 0..1.
        repeats: how often an epoch shows each caption; an epoch of a short list would be over in no time.
        text: member that holds the caption. Samples without one are left out.
        seed: of the order.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 128,
        holdout: float = 0.05,
        repeats: int = 1,
        text: str = "txt",
        seed: int = 0,
    ) -> None:
        super().__init__(folder, batch_size, seed)
        self.holdout, self.repeats, self.text = holdout, repeats, text

    def setup(self, stage: str | None = None) -> None:
        """Read everything."""
        if self.training is not None:
            return
        texts = sorted({_caption(row[self.text]) for row in read_having(self.folder, self.text)})
        self._keep(Batches({"text": texts}), [_fraction(text) < self.holdout for text in texts])
        assert self.training is not None
        self.training = Batches({"text": self.training.columns["text"] * self.repeats})


def _stacked(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images))


def _caption(data: bytes) -> str:
    return data.decode("utf-8").strip()


def _fraction(text: str) -> float:
    """A number in 0..1 that is a fixed function of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32

"""What the shipped trainings read of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unidiff_codecs.image import square
from unidiff_codecs.picture import open_image
from unidiff_codecs.text import check_text, decoded
from unidiff_core import Batches, Columns, ShardData
from unidiff_core.data.columns import Alternatives
from unidiff_core.data.damage import FAIL, Damage
from unidiff_core.data.shard import Endings
from unidiff_core.foundation.argument import check_sizes


class ImageData(ShardData):
    """Images. Held out: the last samples, which where shards are in order are other sources.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        size: images are cropped and resized to this side, pixels.
        batch_size: samples per step.
        holdout: share that is held out, 0..1.
        image: ending of the member that holds the image, or several: ``[jpg, jpeg, png]``. Samples
            without one are left out.
        seed: of the order.
        damage: what is done about shards and samples that cannot be read.
    """

    def __init__(
        self,
        folder: str,
        size: int,
        batch_size: int = 128,
        holdout: float = 0.05,
        image: Endings = "png",
        seed: int = 0,
        damage: Damage = FAIL,
    ) -> None:
        super().__init__(folder, batch_size, holdout, seed, damage)
        check_sizes(size=size)
        self.size, self.image = size, image

    def read(self) -> Columns:
        """``image``: uint8 ``[n, 3, size, size]``."""
        found = self.parsed_all((self.image, self._pixels))
        return {"image": _stacked([pixels for (several,) in found for pixels in several])}

    def _pixels(self, content: bytes) -> np.ndarray:
        return np.asarray(square(open_image(content), self.size)).transpose(2, 0, 1)


class PairData(ImageData):
    """Images with their captions. Held out: the last samples, which where shards are in order are other sources.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        size: images are cropped and resized to this side, pixels.
        batch_size: samples per step.
        holdout: share that is held out, 0..1.
        image: ending of the member that holds the image, or several: ``[jpg, jpeg, png]``. Samples
            that lack it or the caption are left out.
        text: ending of the member that holds the caption.
        seed: of the order.
        damage: what is done about shards and samples that cannot be read.
    """

    def __init__(
        self,
        folder: str,
        size: int,
        batch_size: int = 128,
        holdout: float = 0.05,
        image: Endings = "png",
        text: Endings = "txt",
        seed: int = 0,
        damage: Damage = FAIL,
    ) -> None:
        super().__init__(folder, size, batch_size, holdout, image, seed, damage)
        self.text = text

    def read(self) -> Columns:
        """``image``: uint8 ``[n, 3, size, size]``; ``text``: n captions, of several one drawn in each epoch."""
        rows = list(self.parsed_all((self.image, self._pixels), (self.text, _caption)))
        return {"image": _stacked([images[0] for images, _ in rows]), "text": Alternatives(texts for _, texts in rows)}


class CaptionData(ShardData):
    """Distinct captions. Held out: those that a hash picks, so a held-out caption is never trained on.

    Args:
        folder: training shards: a folder, a pattern or a URL. The test shards are never read here.
        batch_size: captions per step.
        holdout: share that is held out, 0..1.
        repeats: how often an epoch shows each caption; an epoch of a short list would be over in no time.
        text: ending of the member that holds the caption. Samples without one are left out.
        seed: of the order.
        damage: what is done about shards and samples that cannot be read.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 128,
        holdout: float = 0.05,
        repeats: int = 1,
        text: Endings = "txt",
        seed: int = 0,
        damage: Damage = FAIL,
    ) -> None:
        super().__init__(folder, batch_size, holdout, seed, damage)
        check_sizes(repeats=repeats)
        self.repeats, self.text = repeats, text

    def read(self) -> Columns:
        """``text``: the distinct captions, sorted."""
        return {"text": sorted({text for (several,) in self.parsed_all((self.text, _caption)) for text in several})}

    def is_held_out(self, columns: Columns, num: int) -> list[bool]:
        """By a hash of the caption."""
        return [_fraction(text) < self.holdout for text in columns["text"]]

    def setup(self, stage: str | None = None) -> None:
        """Read everything, and repeat what is trained on."""
        if self.training is None:
            super().setup(stage)
            assert self.training is not None
            self.training = Batches({"text": self.training.columns["text"] * self.repeats})


def _stacked(images: Sequence[np.ndarray]) -> Tensor:
    if not images:
        raise ValueError("no sample is left to train on")
    return torch.from_numpy(np.stack(images))


def _caption(data: bytes) -> str:
    return check_text(decoded(data)).strip()


def _fraction(text: str) -> float:
    """A number in 0..1 that is a fixed function of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32

"""Every caption that the digits' grammar produces, as words by number: what demonstrations of symbols are trained on.

The law is known: captions are equally likely, so that samples are held against it and not against other samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from small import fitted
from torch import Tensor
from torch.utils.data import Dataset
from unidiff_digits.grammar import COLOURS, GROUNDS, PHRASINGS, parse, phrase, phrasing_of

from unidiff_core import Codec, Modality, Stream, UniDiffuser
from unidiff_core.codec.label import LabelCodec
from unidiff_core.data.order import Place
from unidiff_core.foundation.batch import Batch
from unidiff_core.network.uvit import UViT
from unidiff_core.process.masked.process import Masked
from unidiff_core.process.process import ForwardProcess
from unidiff_core.sampling.loop import sample
from unidiff_core.testing import ExactMixture
from unidiff_core.training.law import Atoms, Independent
from unidiff_core.training.learning_rate import Warmup

DIGITS = [str(digit) for digit in range(10)]
ROWS = list(product(range(len(PHRASINGS)), DIGITS, COLOURS, GROUNDS))
CAPTIONS = [phrase(*row) for row in ROWS]
PAD = ""
WORDS = [PAD, *sorted({word for caption in CAPTIONS for word in caption.split()})]
LENGTH = max(len(caption.split()) for caption in CAPTIONS)


class Words(Codec):
    """A caption as words by number, padded to the longest."""

    extension = "txt"
    streams = {"ids": Stream.symbols(LENGTH, vocabulary=len(WORDS))}  # noqa: RUF012

    def encode(self, raws: Sequence[str]) -> dict[str, Tensor]:
        """Captions → ``ids``."""
        rows = [[WORDS.index(word) for word in raw.split()] for raw in raws]
        return {"ids": torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows]).reshape(-1, LENGTH)}

    def decode(self, latents: Mapping[str, Tensor]) -> list[str]:
        """``ids`` → captions, with a gap where a pad is not at the end."""
        return [" ".join(WORDS[i] for i in row).rstrip() for row in latents["ids"].tolist()]

    def from_bytes(self, data: bytes) -> str:
        """UTF-8."""
        return data.decode()

    def to_bytes(self, raw: str) -> bytes:
        """UTF-8."""
        return raw.encode()


class Captions(Dataset[Batch]):
    """All captions and the digits that they name."""

    def __init__(self) -> None:
        self.stored = {
            "text.ids": Words().encode(CAPTIONS)["ids"],
            "digit.label": torch.tensor([[int(digit)] for _, digit, _, _ in ROWS]),
        }

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, place: Place) -> Batch:  # type: ignore[override]
        return Batch(place.index, place.step, {key: value[place.rows] for key, value in self.stored.items()})


def trained(process: ForwardProcess, data: Captions, *, steps: int, seed: int = 0) -> UniDiffuser:
    """A model of captions and digits, with its average as weights."""
    torch.manual_seed(seed)
    model = UniDiffuser(
        {"text": Modality(Words(), process), "digit": Modality(LabelCodec(DIGITS), Masked())},
        partial(UViT, width=64, depth=3, heads=4, position_std=0.5, scaled_init=True),
        timestep_law=Independent({"digit": Atoms({0: 0.3, 1: 0.4})}),
        balance="streams",
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.03, betas=(0.9, 0.99), fused=True),
        lr_scheduler=partial(Warmup, steps=50, decay_until=steps),
        seed=seed,
    )
    return fitted(model, data, steps=steps, seed=seed)


def exact(process: ForwardProcess, data: Captions) -> ExactMixture:
    """The network that training aims at, of captions alone."""
    weights = torch.zeros(len(data))
    return ExactMixture({"text": process}, {"text.ids": data.stored["text.ids"]}, weights)


def drawn(network: UniDiffuser | ExactMixture, num: int, **options: Any) -> list[str]:
    """Captions, of nothing given."""
    if isinstance(network, UniDiffuser):
        captions: list[str] = network.sample("text", num=num, **options)["text"]
        return captions
    shapes = {"text.ids": (LENGTH,)}
    ids = sample(network, "text", processes=network.processes, shapes=shapes, num=num, **options)
    return Words().decode({"ids": ids["text.ids"]})


def measured(captions: Sequence[str], digits: Sequence[str] | None = None) -> dict[str, float]:
    """Of captions: ``grammatical``, a share; ``phrasings``, total variation of those that are to the data's; ``digit``,
    the share that names what it was asked for.
    """
    found = [PHRASINGS.index(row) for row in map(phrasing_of, captions) if row]
    law = np.bincount([row[0] for row in ROWS], minlength=len(PHRASINGS)) / len(ROWS)
    shares = np.bincount(found, minlength=len(PHRASINGS)) / max(1, len(found))
    figures: dict[str, Any] = {
        "grammatical": len(found) / len(captions),
        "phrasings": float(0.5 * np.abs(shares - law).sum()),
    }
    if digits is not None:
        read = [parse(caption) for caption in captions]
        named = [row.digit if row else None for row in read]
        figures["digit"] = float(np.mean([a == b for a, b in zip(named, digits, strict=True)]))
    return figures

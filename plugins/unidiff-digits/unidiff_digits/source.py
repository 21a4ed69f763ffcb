"""Coloured handwritten digits, made from scikit-learn's scans, and their dial tones."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from unidiff_core import Members, Source
from unidiff_core.foundation.argument import check_sizes
from unidiff_digits import tone
from unidiff_digits.grammar import COLOURS, GROUNDS, PHRASINGS, phrase

T = TypeVar("T")

SIZE = 32
TRAIN_SHARE = 0.8
INKS = dict(
    zip(
        COLOURS,
        [(235, 35, 35), (20, 165, 45), (60, 80, 255), (245, 215, 0), (0, 195, 225), (220, 40, 205), (255, 200, 150)],
        strict=True,
    )
)
GROUND_COLOURS = dict(zip(GROUNDS, [(0, 0, 0), (255, 255, 255), (150, 150, 150)], strict=True))
"""RGB, 0..255. The first six inks are 60° of hue apart, and at least 140 from every ground; the last one 110."""
USUAL = COLOURS[:6]
"""What the demo trains on. The last one is kept for fine-tuning."""


@cache
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans in their original order: intensities ``[n, 8, 8]`` in 0..1 and numerals ``[n]``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(str)


def enlarge(scan: np.ndarray) -> np.ndarray:
    """Intensity ``[8, 8]`` → ``[32, 32]``, smoothly (bicubic), in 0..1."""
    image = Image.fromarray(scan.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0.0, 1.0)


def draw(scan: np.ndarray, colour: str, ground: str) -> Image.Image:
    """A scan in ink on a ground: ground + (ink − ground) · intensity, 32×32 RGB."""
    intensity = enlarge(scan)[..., None]
    paper, ink = np.array(GROUND_COLOURS[ground]), np.array(INKS[colour])
    return Image.fromarray(np.rint(paper + (ink - paper) * intensity).astype(np.uint8))


def _deck(values: Sequence[T], rng: np.random.Generator) -> Iterator[T]:
    """Values for ever: all of them shuffled, then all again, so that each is drawn equally often."""
    while True:
        yield from (values[i] for i in rng.permutation(len(values)))


class DigitsSource(Source):
    """Handwritten digits in colour, with captions, labels, and if wanted the sound of dialling them.

    The first 80 % of the scans by index are `train`, the last 20 % (approximately other writers) are `test`.

    Args:
        renderings_train: how often each training scan is drawn, each time in another ink, ground and phrasing.
        renderings_test: the same for each test scan; 3 give 1080 samples.
        scans: at most so many scans of each split, for a quick try; all by default.
        seed: of the choice of inks, grounds and phrasings, and of the sounds.
        inks: colours that are drawn, of `COLOURS`.
        sound: whether each sample has a dial tone too, a WAV file; it changes nothing else.
        lacks: member → share of the training samples that lack it, drawn at random: ``{wav: 0.5, txt: 0.5}``.
        unseen: share of the sentences, drawn at random, that no training sample carries: compositions of digit, ink,
            ground and phrasing that are new to a model when test samples name them.
    """

    def __init__(
        self,
        renderings_train: int = 8,
        renderings_test: int = 3,
        scans: int | None = None,
        seed: int = 0,
        inks: Sequence[str] = USUAL,
        sound: bool = False,
        lacks: dict[str, float] | None = None,
        unseen: float = 0.0,
    ) -> None:
        check_sizes(renderings_train=renderings_train, renderings_test=renderings_test, scans=scans)
        if not inks or set(inks) - set(COLOURS):
            raise ValueError(f"the inks are some of {', '.join(COLOURS)}, not {', '.join(inks) or 'none'}")
        if set(lacks or {}) - {"png", "txt", "wav"} or not all(0 <= share <= 1 for share in (lacks or {}).values()):
            raise ValueError(f"lacks gives shares, from 0 to 1, of samples without png, txt or wav, not {lacks}")
        if not 0 <= unseen < 1:
            raise ValueError(f"unseen is a share of the sentences, from 0 to below 1, not {unseen}")
        self.unseen = unseen
        self.inks = tuple(inks)
        self.lacks = dict(lacks or {})
        self.renderings_train = renderings_train
        self.renderings_test = renderings_test
        self.scans = scans
        self.seed = seed
        self.sound = sound

    @property
    def splits(self) -> dict[str, int]:
        """Samples of `train` and `test`."""
        return {split: len(self._indices(split)) * self._renderings(split) for split in ("train", "test")}

    def samples(self, split: str) -> Iterator[Members]:
        """PNG, caption and labels, and a WAV file if there is sound, scan by scan."""
        scans, numerals = load_scans()
        rng, sounds, lots = (np.random.default_rng([self.seed, split == "test", *more]) for more in ([], [1], [2]))
        looks = _deck([(colour, ground) for colour in self.inks for ground in GROUNDS], rng)
        phrasings = _deck(range(len(PHRASINGS)), rng)
        unseen = self.unseen_sentences() if split == "train" else frozenset()
        for index in self._indices(split):
            for rendering in range(self._renderings(split)):
                (colour, ground), phrasing = next(looks), next(phrasings)
                digit = str(numerals[index])
                sentence = phrase(phrasing, digit, colour, ground)
                while sentence in unseen:
                    sentence = phrase(next(phrasings), digit, colour, ground)
                members: dict[str, Any] = {
                    "__key__": f"{index:05d}-{rendering:02d}",
                    "png": _png(draw(scans[index], colour, ground)),
                    "txt": sentence.encode(),
                    "json": json.dumps({"digit": digit, "colour": colour, "ground": ground}).encode(),
                }
                if self.sound:
                    members["wav"] = tone.wav(tone.synthesise(digit, sounds))
                lacking = [member for member, share in self.lacks.items() if lots.random() < share]
                yield {key: value for key, value in members.items() if split == "test" or key not in lacking}

    def unseen_sentences(self) -> frozenset[str]:
        """Sentences that no training sample carries; the first phrasing has none, so that every look can be said."""
        rng = np.random.default_rng([self.seed, 3])
        rows = product(range(1, len(PHRASINGS)), map(str, range(10)), COLOURS, GROUNDS)
        sentences = sorted({phrase(*row) for row in rows})
        lots = rng.random(len(sentences))
        return frozenset(sentence for sentence, lot in zip(sentences, lots, strict=True) if lot < self.unseen)

    def _indices(self, split: str) -> range:
        total = len(load_scans()[0])
        first_test = int(total * TRAIN_SHARE)
        match split:
            case "train":
                indices = range(first_test)
            case "test":
                indices = range(first_test, total)
            case _:
                raise ValueError(f"no split {split!r}; there are train and test")
        return indices[: self.scans]

    def _renderings(self, split: str) -> int:
        return self.renderings_train if split == "train" else self.renderings_test


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()

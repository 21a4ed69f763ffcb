"""Reads digit, ink colour and ground off images and captions, and the digit off sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unidiff_core import Judge, Raw
from unidiff_digits import tone
from unidiff_digits.grammar import parse, spot
from unidiff_digits.source import SIZE

SCAN = 8
"""Side of the original scans; everything finer in an image is interpolation."""
SIDE = 4
"""Columns at the left and at the right edge, which the ground fills in nearly every scan."""
INK_SHARE = 0.05
"""Share of the pixels, those farthest from the ground, that are taken for pure ink."""


class Drawing(NamedTuple):
    """Images taken apart, colours in 0..255."""

    ground: np.ndarray
    """Estimated colour of the ground ``[n, 3]``."""
    ink: np.ndarray
    """Estimated colour of the ink ``[n, 3]``."""
    intensity: np.ndarray
    """Amount of ink ``[n, 8, 8]``, 0..1."""
    is_readable: np.ndarray
    """Whether the picture is one ink on one ground at all ``[n]``."""


class DigitsJudge(Judge):
    """Reads "digit", "colour" (of the ink) and "ground" off coloured digits, their captions and dial tones.

    Images: ground and ink are estimated, the picture is turned into an intensity map at the scans' own 8×8, and a
    support-vector machine (RBF kernel) reads the digit; ink and ground are named by the nearest mean of the training
    images' estimates. A picture that is not one ink on one ground reads as None throughout.
    Captions: any text that names exactly one digit (one colour, one ground) reads as that; only a sentence of the
    grammar is well-formed.
    Sounds, anything with `samples` ``[n]`` and `rate`: Goertzel filters read the digit; they have no colour or ground.

    Args:
        contrast: least distance of ink and ground, RGB in 0..255, of a readable picture. Real ones have 140 and more.
        explained: least share of the pixels' variation along the line from ground to ink of a readable picture. Real
            ones have nearly 1, noise has about 1/3.
        regularization: C of the support-vector machine.
    """

    labels = ("digit", "colour", "ground")
    modalities = ("image", "text", "audio")
    well_formed_name = "grammatical"

    def __init__(self, contrast: float = 60.0, explained: float = 0.7, regularization: float = 10.0) -> None:
        self.contrast = contrast
        self.explained = explained
        self.regularization = regularization
        self._machine: Any = None
        self._means: dict[str, dict[str, np.ndarray]] = {}

    def fit(self, modality: str, raws: Sequence[Raw], labels: dict[str, list[str]]) -> None:
        """Train the image readers; captions and sounds need none."""
        if modality != "image":
            return
        from sklearn.svm import SVC

        drawing = self._take_apart(raws)
        self._machine = SVC(C=self.regularization).fit(_flat(drawing.intensity), labels["digit"])
        self._means = {
            "colour": _class_means(drawing.ink, labels["colour"]),
            "ground": _class_means(drawing.ground, labels["ground"]),
        }

    def read(self, modality: str, raws: Sequence[Raw]) -> dict[str, list[str | None]]:
        """Digit as a numeral, colour and ground as the captions name them."""
        self._check(modality)
        if modality == "text":
            readings = [spot(raw) for raw in raws]
            return {label: [getattr(reading, label) for reading in readings] for label in self.labels}
        if modality == "audio":
            unsaid: list[str | None] = [None] * len(raws)
            return dict.fromkeys(self.labels, unsaid) | {"digit": [tone.read(raw.samples, raw.rate) for raw in raws]}
        if self._machine is None:
            raise ValueError("the judge has not seen training images yet; call fit first")
        drawing = self._take_apart(raws)
        values = {
            "digit": self._machine.predict(_flat(drawing.intensity)),
            "colour": _nearest_class(drawing.ink, self._means["colour"]),
            "ground": _nearest_class(drawing.ground, self._means["ground"]),
        }
        return {label: _where(drawing.is_readable, values[label]) for label in self.labels}

    def well_formed(self, modality: str, raw: Raw) -> bool | None:
        """Whether a caption is a sentence of the grammar, word for word."""
        return parse(raw) is not None if modality == "text" else None

    def features(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """Intensity maps ``[n, 64]``: the shape without its colours.

        A copied scan is a copy in any ink, so colours must not hide it; and between pictures of different colours they
        would outweigh all shape. 8×8 is the scans' own resolution: finer, the distance would measure the codec's blur.
        """
        self._check(modality)
        return _flat(self._take_apart(raws).intensity) if modality == "image" else None

    def _check(self, modality: str) -> None:
        if modality not in self.modalities:
            raise ValueError(f"DigitsJudge cannot read {modality!r}; it reads {', '.join(self.modalities)}")

    def _take_apart(self, raws: Sequence[Raw]) -> Drawing:
        pixels = np.stack([_pixels(raw) for raw in raws])  # (n, 32, 32, 3)
        n = len(pixels)
        sides = np.concatenate([pixels[:, :, :SIDE], pixels[:, :, -SIDE:]], axis=2)
        ground = np.median(sides.reshape(n, -1, 3), axis=1)
        offsets = pixels.reshape(n, -1, 3) - ground[:, None]
        lengths = np.linalg.norm(offsets, axis=-1)
        farthest = np.argsort(-lengths, axis=1)[:, : int(INK_SHARE * lengths.shape[1])]
        direction = np.take_along_axis(offsets, farthest[..., None], axis=1).mean(axis=1)  # (n, 3)
        contrast = np.linalg.norm(direction, axis=-1)
        projection = np.einsum("npc,nc->np", offsets, direction) / np.maximum(contrast, 1e-6)[:, None]
        explained = (projection**2).sum(1) / np.maximum((lengths**2).sum(1), 1e-6)
        intensity = np.clip(projection / np.maximum(contrast, 1e-6)[:, None], 0, 1)
        block = SIZE // SCAN
        return Drawing(
            ground=ground,
            ink=ground + direction,
            intensity=intensity.reshape(n, SCAN, block, SCAN, block).mean(axis=(2, 4)),
            is_readable=(contrast >= self.contrast) & (explained >= self.explained),
        )


def _pixels(image: Image.Image) -> np.ndarray:
    """An image of any mode and size → ``[32, 32, 3]``, 0..255."""
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


def _flat(maps: np.ndarray) -> np.ndarray:
    return maps.reshape(len(maps), -1)


def _class_means(values: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    names = np.array(labels)
    return {str(name): values[names == name].mean(axis=0) for name in np.unique(names)}


def _nearest_class(values: np.ndarray, means: dict[str, np.ndarray]) -> np.ndarray:
    distances = np.linalg.norm(values[:, None] - np.stack(list(means.values())), axis=-1)
    return np.array(list(means))[distances.argmin(axis=1)]


def _where(is_readable: np.ndarray, values: np.ndarray) -> list[str | None]:
    return [str(value) if readable else None for readable, value in zip(is_readable, values, strict=True)]

"""Reads digit, ink colour and ground off images and captions, the phrasing off captions, and the digit off sounds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unidiff_core import Judge, Raw
from unidiff_core.foundation.argument import check_amounts, check_shares
from unidiff_digits import tone
from unidiff_digits.grammar import parse, phrasing_of, spot
from unidiff_digits.source import SIZE

SCAN = 8
"""Side of the original scans; everything finer in an image is interpolation."""
SIDE = 4
"""Columns at the left and at the right edge, which the ground fills in nearly every scan."""
INK_SHARE = 0.05
"""Share of the pixels, those farthest from the ground, that are taken for pure ink."""

HELD_OUT = 0.2
"""Share of the training images, the last ones, off which is read how far from the others a digit may be."""
LEAST_HELD_OUT = 200
"""Images, at least, off which that can be read; with fewer every digit is near enough."""
SHIFTS = (-1, 0, 1)
"""Pixels of 32, in both directions, by which a copy may be moved."""
TURNS = (-10.0, -5.0, 0.0, 5.0, 10.0)
"""Degrees by which it may be turned."""


class Drawing(NamedTuple):
    """Images taken apart, colours in 0..255."""

    ground: np.ndarray
    """Estimated colour of the ground ``[n, 3]``."""
    ink: np.ndarray
    """Estimated colour of the ink ``[n, 3]``."""
    intensity: np.ndarray
    """Amount of ink ``[n, 32, 32]``, 0..1."""
    is_readable: np.ndarray
    """Whether the picture is one ink on one ground at all ``[n]``."""


class DigitsJudge(Judge):
    """Reads "digit", "colour" (of the ink) and "ground" off coloured digits, their captions and dial tones.

    Images: ground and ink are estimated, the picture is turned into an intensity map at the scans' own 8×8, and a
    support-vector machine (RBF kernel) reads the digit; ink and ground are named by the nearest mean of the training
    images' estimates. A picture that is not one ink on one ground reads as None throughout; one whose map is farther
    from all training maps of the digit than a held-out image rarely is reads as no digit.
    Captions: any text that names exactly one digit (one colour, one ground) reads as that; only a sentence of the
    grammar is well-formed, and has a "phrasing", which no data records.
    Sounds, anything with `samples` ``[n]`` and `rate`: Goertzel filters read the digit; they have no colour or ground.

    Args:
        contrast: least distance of ink and ground, RGB in 0..255, of a readable picture. Real ones have 140 and more.
        explained: least share of the pixels' variation along the line from ground to ink of a readable picture. Real
            ones have nearly 1, noise has about 1/3.
        regularization: C of the support-vector machine.
        typical: share of held-out images whose map is near enough to a training map of their digit.
    """

    labels = ("digit", "colour", "ground")
    unrecorded = ("phrasing",)
    modalities = ("image", "text", "audio")
    well_formed_name = "grammatical"

    def __init__(
        self, contrast: float = 60.0, explained: float = 0.7, regularization: float = 10.0, typical: float = 0.99
    ) -> None:
        check_amounts(contrast=contrast, regularization=regularization)
        check_shares(explained=explained, typical=typical)
        self.contrast = contrast
        self.explained = explained
        self.regularization = regularization
        self.typical = typical
        self._machine: Any = None
        self._means: dict[str, dict[str, np.ndarray]] = {}

    def fit(self, modality: str, raws: Sequence[Raw], labels: dict[str, list[str]]) -> None:
        """Train the image readers; captions and sounds need none."""
        if modality != "image":
            return
        from sklearn.svm import SVC

        drawing = self._take_apart(raws)
        maps, digits = _maps(drawing.intensity), np.array(labels["digit"])
        self._machine = SVC(C=self.regularization).fit(maps, digits)
        self._maps = {str(digit): maps[digits == digit] for digit in np.unique(digits)}
        first = round((1 - HELD_OUT) * len(maps))
        others = {digit: maps[:first][digits[:first] == digit] for digit in self._maps}
        held_out = _distances(maps[first:], digits[first:], others)
        known = held_out[np.isfinite(held_out)]
        self._farthest = float(np.quantile(known, self.typical)) if len(known) >= LEAST_HELD_OUT else np.inf
        self._means = {
            "colour": _class_means(drawing.ink, labels["colour"]),
            "ground": _class_means(drawing.ground, labels["ground"]),
        }

    def read(self, modality: str, raws: Sequence[Raw]) -> dict[str, list[str | None]]:
        """Digit as a numeral, colour and ground as the captions name them."""
        self._check(modality)
        if modality == "text":
            readings = [spot(raw) for raw in raws]
            found = {label: [getattr(reading, label) for reading in readings] for label in self.labels}
            return {**found, "phrasing": [phrasing_of(raw) for raw in raws]}
        if modality == "audio":
            unsaid: list[str | None] = [None] * len(raws)
            return dict.fromkeys(self.labels, unsaid) | {"digit": [tone.read(raw.samples, raw.rate) for raw in raws]}
        if self._machine is None:
            raise ValueError("the judge has not seen training images yet; call fit first")
        drawing = self._take_apart(raws)
        maps = _maps(drawing.intensity)
        digits = self._machine.predict(maps)
        is_typical = _distances(maps, digits, self._maps) <= self._farthest
        values = {
            "digit": digits,
            "colour": _nearest_class(drawing.ink, self._means["colour"]),
            "ground": _nearest_class(drawing.ground, self._means["ground"]),
        }
        seen = {label: drawing.is_readable & (is_typical | (label != "digit")) for label in self.labels}
        return {label: _where(seen[label], values[label]) for label in self.labels}

    def well_formed(self, modality: str, raw: Raw) -> bool | None:
        """Whether a caption is a sentence of the grammar, word for word."""
        return parse(raw) is not None if modality == "text" else None

    def features(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """Intensity maps ``[n, 64]``: the shape without its colours.

        A copied scan is a copy in any ink, so colours must not hide it; and between pictures of different colours they
        would outweigh all shape. 8×8 is the scans' own resolution: finer, the distance would measure the codec's blur.
        """
        self._check(modality)
        return _maps(self._take_apart(raws).intensity) if modality == "image" else None

    def variants(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """The same of each image as it is, and moved by up to a pixel and turned by up to 10°: ``[n, 45, 64]``."""
        self._check(modality)
        return _variants(self._take_apart(raws).intensity) if modality == "image" else None

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
        return Drawing(
            ground=ground,
            ink=ground + direction,
            intensity=intensity.reshape(n, SIZE, SIZE),
            is_readable=(contrast >= self.contrast) & (explained >= self.explained),
        )


def _pixels(image: Image.Image) -> np.ndarray:
    """An image of any mode and size → ``[32, 32, 3]``, 0..255."""
    image = image.convert("RGB")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


def _maps(intensity: np.ndarray) -> np.ndarray:
    """``[..., 32, 32]`` → its means over the scan's pixels ``[..., 64]``."""
    block, outer = SIZE // SCAN, intensity.shape[:-2]
    return intensity.reshape(*outer, SCAN, block, SCAN, block).mean(axis=(-3, -1)).reshape(*outer, SCAN * SCAN)


def _variants(intensity: np.ndarray) -> np.ndarray:
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    changes = sorted(product(SHIFTS, SHIFTS, TURNS), key=lambda row: sum(map(abs, row)))  # the first is none
    angles = torch.deg2rad(torch.tensor([turn for _, _, turn in changes]))
    moves = torch.tensor([row[:2] for row in changes]) * 2.0 / SIZE
    turned = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=1).view(-1, 2, 2)
    grid = affine_grid(torch.cat([turned, moves[..., None]], dim=2), [len(changes), 1, SIZE, SIZE], align_corners=False)
    images = torch.from_numpy(intensity.astype(np.float32))  # as channels: each change is of all of them alike
    parts = [grid_sample(images[None], one[None], align_corners=False)[0].numpy() for one in grid]
    return np.stack([_maps(part) for part in parts], axis=1)


def _distances(maps: np.ndarray, digits: np.ndarray, known: dict[str, np.ndarray]) -> np.ndarray:
    """Distance of each map to the nearest known one of its digit; infinite where there is none."""
    from sklearn.neighbors import NearestNeighbors

    distances = np.full(len(maps), np.inf)
    for digit, rows in known.items():
        if len(rows) and (digits == digit).any():
            finder = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(rows)
            distances[digits == digit] = finder.kneighbors(maps[digits == digit])[0][:, 0]
    return distances


def _class_means(values: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    names = np.array(labels)
    return {str(name): values[names == name].mean(axis=0) for name in np.unique(names)}


def _nearest_class(values: np.ndarray, means: dict[str, np.ndarray]) -> np.ndarray:
    distances = np.linalg.norm(values[:, None] - np.stack(list(means.values())), axis=-1)
    return np.array(list(means))[distances.argmin(axis=1)]


def _where(is_readable: np.ndarray, values: np.ndarray) -> list[str | None]:
    return [str(value) if readable else None for readable, value in zip(is_readable, values, strict=True)]

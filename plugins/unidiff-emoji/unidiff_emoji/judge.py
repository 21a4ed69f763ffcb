"""Reads base, tone and group off pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from unidiff_core import Judge, Raw
from unidiff_core.foundation.argument import check_amounts
from unidiff_emoji.drawing import NO_TONE, drawings, parse
from unidiff_emoji.pixels import block_means, nearest, pixels

BINS = 8
"""Of a colour histogram, for each of red, green and blue."""
RARE = 0.001
"""Least mean (of the square root of its share) of a colour that the tone is read by."""
YELLOW = (252, 234, 43)
SKINS = {
    NO_TONE: YELLOW,
    "light": (250, 220, 188),
    "medium-light": (222, 187, 144),
    "medium": (193, 154, 101),
    "medium-dark": (165, 121, 57),
    "dark": (106, 70, 47),
}
"""OpenMoji's skin colours, RGB 0..255."""
NEAR_SKIN = 24 / 255
"""Most distance of a pixel from a skin colour that it is taken for."""


class EmojiJudge(Judge):
    """Reads "base", "tone" and "group" off pictures in colour, line drawings and captions.

    Pictures: the tone by a logistic regression on colour histograms; base and group are those of the nearest training
    picture, skin in yellow, so that the tone does not matter. Line drawings: base and group likewise; no tone.
    Captions: any sentence that the grammar makes; all others read as None and are not well-formed.

    Args:
        regularization: C of the logistic regression.
    """

    labels = ("base", "tone", "group")
    modalities = ("picture", "line", "caption")
    well_formed_name = "grammatical"

    def __init__(self, regularization: float = 10.0) -> None:
        check_amounts(regularization=regularization)
        self.regularization = regularization
        self._tones: Any = None
        self._known: dict[str, tuple[np.ndarray, dict[str, list[str]]]] = {}
        self._groups = {drawing.base: drawing.group for drawing in drawings()}

    def fit(self, modality: str, raws: Sequence[Raw], labels: dict[str, list[str]]) -> None:
        """Train the readers of pictures; captions need none."""
        if modality == "caption":
            return
        self._known[modality] = (shapes(raws), labels)
        if modality == "picture":
            from sklearn.linear_model import LogisticRegression

            found = histograms(raws)
            self._colours = np.flatnonzero(found.mean(axis=0) > RARE)
            self._tones = LogisticRegression(C=self.regularization, max_iter=300)
            self._tones.fit(found[:, self._colours], labels["tone"])

    def read(self, modality: str, raws: Sequence[Raw]) -> dict[str, list[str | None]]:
        """Base as captions name it, tone (``none`` where there is none), and group."""
        self._check(modality)
        if modality == "caption":
            rows = [parse(raw.strip()) or (None, None) for raw in raws]
            bases = [base for base, _ in rows]
            groups = [None if base is None else self._groups[base] for base in bases]
            return {"base": bases, "tone": [tone for _, tone in rows], "group": groups}
        if modality not in self._known:
            raise ValueError("the judge has not seen training images yet; call fit first")
        features, labels = self._known[modality]
        places = nearest(shapes(raws), features)
        readings: dict[str, list[str | None]] = {
            label: [labels[label][i] for i in places] for label in ("base", "group")
        }
        tones = (
            list(self._tones.predict(histograms(raws)[:, self._colours]))
            if modality == "picture"
            else [None] * len(raws)
        )
        return {"base": readings["base"], "tone": tones, "group": readings["group"]}

    def well_formed(self, modality: str, raw: Raw) -> bool | None:
        """Whether a caption is a sentence of the grammar."""
        return parse(raw.strip()) is not None if modality == "caption" else None

    def features(self, modality: str, raws: Sequence[Raw]) -> np.ndarray | None:
        """Maps ``[n, 768]`` of what is drawn, skin in yellow; None of captions."""
        self._check(modality)
        return None if modality == "caption" else shapes(raws)

    def _check(self, modality: str) -> None:
        if modality not in self.modalities:
            raise ValueError(f"EmojiJudge cannot read {modality!r}; it reads {', '.join(self.modalities)}")


def shapes(images: Sequence[Image.Image]) -> np.ndarray:
    """Images → ``[n, 16·16·3]``: what is drawn, whatever the skin's tone."""
    rgb = pixels(images)
    palette = np.array(list(SKINS.values()), dtype=np.float32) / 255
    distance = np.linalg.norm(rgb[..., None, :] - palette, axis=-1).min(axis=-1)
    rgb = np.where((distance < NEAR_SKIN)[..., None], palette[0], rgb)
    return block_means(rgb)


def histograms(images: Sequence[Image.Image]) -> np.ndarray:
    """Images → square roots of the shares of colours ``[n, 8·8·8]``, in which white does not count."""
    rgb = pixels(images)
    bins = np.minimum((rgb * BINS).astype(int), BINS - 1) @ np.array([BINS * BINS, BINS, 1])
    rows = np.stack([np.bincount(row.ravel(), minlength=BINS**3) for row in bins]).astype(np.float32)
    rows[:, -1] = 0
    return np.sqrt(rows / np.maximum(rows.sum(axis=1, keepdims=True), 1))

"""What the judge and the metrics read off pictures: colours in CIE Lab, dark strokes, and what is within a drawing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 16
"""Side of the maps that are compared, pixels."""
DARK = 0.35
"""Most luma, of 1, of a pixel that counts as a stroke."""
PALE = 0.06
"""Least distance from white, of 1, of a pixel that counts as drawn on."""
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _XYZ.sum(axis=1)


def pixels(images: Sequence[Image.Image], size: int | None = None) -> np.ndarray:
    """Images of one size, or brought to `size` → RGB ``[n, size, size, 3]`` in 0..1."""
    rows = [image.convert("RGB") for image in images]
    if size:
        rows = [row if row.size == (size, size) else row.resize((size, size), Image.Resampling.BOX) for row in rows]
    return np.stack([np.asarray(row) for row in rows]).astype(np.float32) / 255


def block_means(rgb: np.ndarray) -> np.ndarray:
    """Pixels ``[n, side, side, 3]`` → means of blocks ``[n, 16·16·3]``; what is left over of the side is left out."""
    n, side = rgb.shape[:2]
    block = side // SIDE
    whole = rgb[:, : block * SIDE, : block * SIDE]
    return whole.reshape(n, SIDE, block, SIDE, block, 3).mean(axis=(2, 4)).reshape(n, -1)


def nearest(features: np.ndarray, references: np.ndarray, chunk: int = 256) -> np.ndarray:
    """Which row of `references` is nearest to each of `features`."""
    norms = (references**2).sum(axis=1)
    parts = (features[i : i + chunk] for i in range(0, len(features), chunk))
    return np.concatenate([(norms - 2 * part @ references.T).argmin(axis=1) for part in parts])


def lab(rgb: np.ndarray) -> np.ndarray:
    """SRGB in 0..1 → CIE L*a*b* under D65, ``[..., 3]``; lightness in 0..100."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def strokes(rgb: np.ndarray) -> np.ndarray:
    """Which pixels are dark ``[..., h, w]``."""
    return rgb @ np.array([0.299, 0.587, 0.114], dtype=rgb.dtype) < DARK


def within(picture: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Which pixels ``[n, h, w]`` are of a drawing: what its colours cover, and what its strokes enclose."""
    from scipy.ndimage import binary_fill_holes

    drawn = (1 - picture).max(axis=-1) > PALE
    return np.stack([row | binary_fill_holes(dark) for row, dark in zip(drawn, strokes(line), strict=True)])


def edge_f1(found: np.ndarray, real: np.ndarray) -> np.ndarray:
    """F1 ``[n]`` of dark pixels ``[n, h, w]`` against real ones, each right if another is at most a pixel away."""
    from scipy.ndimage import binary_dilation

    near = np.ones((1, 3, 3), dtype=bool)
    precision = (found & binary_dilation(real, near)).sum((1, 2)) / np.maximum(found.sum((1, 2)), 1)
    recall = (real & binary_dilation(found, near)).sum((1, 2)) / np.maximum(real.sum((1, 2)), 1)
    return 2 * precision * recall / np.maximum(precision + recall, 1e-9)

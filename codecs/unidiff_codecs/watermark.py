"""An invisible watermark of pictures: 64 bits in both planes of colour, put there by invisible-watermark (dwtDctSvd).

Each block of 8×8 pixels carries a bit in either plane: the largest singular value of its 4×4 wavelet averages is moved
to a quarter or three quarters of a step of `SCALE`. The blocks of a column carry the same bit, and 32 bits follow each
other from left to right, in pictures of any width: so a part of the picture still has them, in turn.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unidiff_core.codec.mark import Mark

KEY = "af7b0c0a370804cd"
"""The mark of converted released weights, as hexadecimal digits; drawn once, evenly."""
PLANES = (1, 2)
"""Blue against yellow, and red against green, of luminance and these."""
COLUMNS = 32
"""Bits in a plane, from left to right."""
BITS = COLUMNS * len(PLANES)
BLOCK = 8
"""Pixels a side that carry a bit."""
SMALLEST = COLUMNS * BLOCK
"""Pixels a side that hold every bit."""
SCALE = 36.0
"""The library's own strength."""
NEEDED = 52
"""Bits that have to agree."""
LARGEST = 512
"""Pixels a side that are read of a larger picture, from the upper left: there are bits enough."""

_KEY = re.compile(f"[0-9a-f]{{{BITS // 4}}}")


def check_key(key: str) -> None:
    """Check that a text is the key of a mark.

    Raises:
        ValueError: if not.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):  # YAML reads digits alone as a number
        raise ValueError(
            f'the watermark {key!r} is none: it is {BITS // 4} hexadecimal digits in quotes, such as "{KEY}", or null'
        )


def check_library() -> None:
    """Check that the library is there.

    Raises:
        ValueError: if not; names what to install.
    """
    try:
        import cv2  # noqa: F401
        from imwatermark.dwtDctSvd import EmbedDwtDctSvd  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the watermark of images needs invisible-watermark, which cannot be loaded ({error}): "
            "pip install 'unidiff-core[watermark]'. It is not needed without a watermark: `watermark: null` of "
            "ImageCodec, in a recipe or in a model's config.yaml; `--watermark=null` of `convert`"
        ) from error


def mark(image: Image.Image, key: str) -> Image.Image:
    """The same RGB picture with a watermark.

    The library's own `encode` gives back the wavelet's horizontal and vertical details in each other's place; here they
    keep it, which halves what is seen of the mark (43.7 dB in place of 40.8).

    Args:
        image: at least `SMALLEST` pixels wide.
        key: of the mark.
    """
    import cv2
    import pywt
    from imwatermark.dwtDctSvd import EmbedDwtDctSvd

    planes = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2YUV)
    height, width = (side // BLOCK * BLOCK for side in planes.shape[:2])
    for plane, bits in zip(PLANES, _bits(key).tolist(), strict=True):
        averages, details = pywt.dwt2(planes[:height, :width, plane], "haar")
        for left in range(0, width // 2, SMALLEST // 2):  # the bits once at a time: the library counts blocks
            stripe = averages[:, left : left + SMALLEST // 2]
            columns = stripe.shape[1] * 2 // BLOCK
            EmbedDwtDctSvd(bits[:columns], columns, block=BLOCK // 2).encode_frame(stripe, SCALE)
        planes[:height, :width, plane] = pywt.idwt2((averages, details), "haar").round().clip(0, 255)
    return Image.fromarray(cv2.cvtColor(planes, cv2.COLOR_YUV2RGB))


def find(image: Image.Image, key: str) -> Mark:
    """How much of a watermark is in an RGB picture, or in the larger one that it was cut from.

    It is looked for at the 64 ways in which its blocks may lie, and the 32 columns that may come first, until all
    agrees. Bits of which no block is left count as wrong.
    """
    import cv2

    bits = _bits(key)
    turned = np.stack([np.roll(bits, -first, axis=1) for first in range(COLUMNS)])
    pixels = np.asarray(image)[:LARGEST, :LARGEST]
    planes = np.moveaxis(cv2.cvtColor(pixels, cv2.COLOR_RGB2YUV)[..., PLANES].astype(np.float64), -1, 0)
    places = list(itertools.product((0, 1), (0, 1), range(BLOCK // 2), range(BLOCK // 2)))
    matched, averages = 0, {}
    for top, left, down, right in places:
        if (top, left) not in averages:
            averages[top, left] = _averages(planes[:, top:, left:])
        read = _read(averages[top, left][:, down:, right:])
        matched = max(matched, int((read == turned[..., : read.shape[1]]).sum((1, 2)).max()))
        if matched == BITS:
            break
    return Mark(matched, BITS, NEEDED, len(places) * COLUMNS)


def _bits(key: str) -> NDArray[np.bool_]:
    """``[planes, columns]``."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(key), np.uint8)).astype(bool).reshape(len(PLANES), COLUMNS)


def _averages(planes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Haar's, of 2×2 pixels, ``[planes, rows, columns]``, at the wavelet's scale."""
    rows, columns = (side // 2 * 2 for side in planes.shape[1:])
    even, odd = planes[:, 0:rows:2], planes[:, 1:rows:2]
    whole = even[..., 0:columns:2] + even[..., 1:columns:2] + odd[..., 0:columns:2] + odd[..., 1:columns:2]
    return np.asarray(whole / 2)


def _read(averages: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Bits ``[planes, columns]`` by the vote of their blocks, of as many columns as there are.

    The library's `decode_frame`, of all blocks at once. It takes the cosine transform of each block, which turns the
    block, so that no singular value changes.
    """
    half = BLOCK // 2
    num, rows, columns = averages.shape[0], averages.shape[1] // half, averages.shape[2] // half
    if not rows or not columns:
        return np.zeros((num, 0), bool)
    blocks = averages[:, : rows * half, : columns * half].reshape(num, rows, half, columns, half)
    votes = (_norms(blocks) % SCALE > SCALE / 2).mean(1)
    shares = np.stack([votes[:, bit::COLUMNS].mean(1) for bit in range(min(columns, COLUMNS))], axis=1)
    read: NDArray[np.bool_] = shares * 255 > 127  # its own bound, of which a half is above
    return read


def _norms(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest singular value of each small matrix ``[planes, rows, i, columns, j]``, by the power method.

    Colour is far from 0, so that the vector of ones is nearly the singular one: two rounds are exact to 1e-5, and many
    times as fast as taking the matrices apart.
    """
    left = blocks.sum(-1)
    for _ in range(2):
        left = np.einsum("pricj,prcj->pric", blocks, np.einsum("pricj,pric->prcj", blocks, left))
        left /= np.abs(left).max()
    right = np.einsum("pricj,pric->prcj", blocks, left)
    squared: NDArray[np.float64] = (right**2).sum(-1) / (left**2).sum(2)
    return np.sqrt(squared)

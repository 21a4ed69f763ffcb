"""Pictures: opened as a viewer shows them, and many of them on one sheet, for people to look at."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

GROUND = "white"
"""What is transparent is laid on this colour."""
MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes of 8 bits a channel without alpha, which its own conversion brings to RGB."""
MODES_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
FORMATS_OF_16_BITS = ("PNG", "PPM")
"""Formats whose mode ``I`` holds greys of 16 bits; elsewhere it says nothing of what is white."""
MOST_THREADS = 8
"""That check images."""
GAP = 2
"""Pixels between images."""
LEGIBLE = 64
"""Images with a smaller side than this are enlarged by a whole factor."""


def open_image(data: bytes) -> Image.Image:
    """Content of any image file that Pillow reads → the RGB image that a viewer shows; see `as_rgb`.

    Of an animation the first picture.

    Raises:
        ValueError: if it is corrupt, cut off, not an image, without a pixel, of a mode that has no rule, or larger than
            Pillow's cap on decompression.
    """
    with _no_bombs():
        image, orientation = _loaded(data)
    return _upright(_without_alpha(image), orientation)


def why_unreadable(contents: Iterable[Callable[[], bytes]]) -> Iterator[str | None]:
    """Of each of many images, in order, what `open_image` would say of it; None of one that it opens.

    Every image is decoded, since Pillow's `verify` passes a JPEG of which half is there; JPEGs at an eighth of their
    sides, which reads all of the file and spares the rest of the work. On several threads: Pillow decodes outside of
    Python's lock.

    Args:
        contents: give the bytes of an image each. An OSError is said of the image, other errors are raised.
    """

    def why(content: Callable[[], bytes]) -> str | None:
        try:
            data = content()
        except OSError as error:
            return error.strerror or str(error)
        try:
            _check_pixels(_loaded(data, is_draft=True)[0])
        except ValueError as error:
            return str(error)
        return None

    with _no_bombs(), ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(why, contents)


@contextmanager
def _no_bombs() -> Iterator[None]:
    """Pillow's warning of a large image is an error. Filters of warnings are of all threads alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _loaded(data: bytes, *, is_draft: bool = False) -> tuple[Image.Image, int | None]:
    """An image, its pixels read, and its orientation.

    Args:
        data: of the file.
        is_draft: whether a JPEG may be smaller than it is.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if is_draft:
            image.draft(None, (1, 1))
        image.load()
        return image, image.getexif().get(ExifTags.Base.Orientation)  # what PNG says of it may follow the pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image too large to decode safely: {error}; scale it down first") from error
    except UnidentifiedImageError as error:  # its own message names a buffer in memory
        raise ValueError(f"not a readable image ({len(data)} bytes): of no format that PIL knows") from error
    except Exception as error:  # PIL's readers raise whatever they meet: OSError, SyntaxError, struct.error, …
        raise ValueError(f"not a readable image ({len(data)} bytes): {error}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode → RGB of 8 bits, as a viewer shows it.

    It is turned as its EXIF orientation says. What is transparent is laid on `GROUND`. Greys of 16 bits (``I;16``, and
    ``I`` of `FORMATS_OF_16_BITS`) are divided by 257, so that 65535 is white. Palettes, CMYK, YCbCr, LAB and HSV are
    converted by Pillow; colour profiles are not applied.

    Raises:
        ValueError: if it has no pixel, or a mode that has no rule (``F``, other ``I``); names it.
    """
    image.load()
    return _upright(_without_alpha(image), image.getexif().get(ExifTags.Base.Orientation))


def _check_pixels(image: Image.Image) -> None:
    """Raises: ValueError if there are none, or nothing says what colours they are."""
    if 0 in image.size:
        raise ValueError(f"an image of {image.width} × {image.height} pixels; it has at least one each way")
    if image.mode not in (*MODES, *MODES_WITH_ALPHA) and not _has_16_bits(image):
        raise ValueError(
            f"an image of mode {image.mode!r} has no stated range to bring to 8-bit RGB; save it as RGB or as 8-bit or "
            "16-bit grey"
        )


def _has_16_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in FORMATS_OF_16_BITS)


def _without_alpha(image: Image.Image) -> Image.Image:
    _check_pixels(image)
    if _has_16_bits(image):
        return _from_16_bits(image)
    if image.mode in MODES_WITH_ALPHA or "transparency" in image.info:
        shown = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # no way from La but through LA
        return Image.alpha_composite(Image.new("RGBA", shown.size, GROUND), shown).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    greys = np.asarray(image).astype(np.int64)
    eight = ((greys.clip(0, 65535) + 128) // 257).astype(np.uint8)  # to the nearest
    if (hidden := image.info.get("transparency")) is not None:
        eight[greys == hidden] = 255
    return Image.fromarray(eight).convert("RGB")


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    if orientation in (None, 1):
        return image
    image.info = {}  # the file's own EXIF may hold what cannot be written again
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def contact_sheet(images: Sequence[Image.Image], *, columns: int | None = None, limit: int = 256) -> Image.Image:
    """The first `limit` images in rows; small images are enlarged so that their pixels show.

    Args:
        images: at least one; all are drawn at the size of the first.
        columns: images per row; about a square by default.
        limit: images at most.
    """
    shown = list(images[:limit])
    columns = columns or math.ceil(math.sqrt(len(shown)))
    factor = max(1, math.ceil(LEGIBLE / min(shown[0].size)))
    width, height = (side * factor + GAP for side in shown[0].size)
    sheet = Image.new("RGB", (columns * width + GAP, math.ceil(len(shown) / columns) * height + GAP), "white")
    for i, image in enumerate(shown):
        large = image.resize((width - GAP, height - GAP), Image.Resampling.NEAREST)
        sheet.paste(large, (GAP + i % columns * width, GAP + i // columns * height))
    return sheet

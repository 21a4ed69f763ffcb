"""Pictures of many images, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

GAP = 2
"""Pixels between images."""
LEGIBLE = 64
"""Images with a smaller side than this are enlarged by a whole factor."""


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

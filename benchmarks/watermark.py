"""The watermark of images: how much of it survives files and crops, and how seldom it is found where there is none.

    python benchmarks/watermark.py --none 1000 --file 1000 --cut 250 [--pictures FOLDER]

From photographs (scikit-learn's two, and those of a folder) squares are cut at random places, of 256 pixels a side to
the whole picture's, evenly in the logarithm, and brought to 256 or 512 pixels; half of them are mirrored. Detected: by
the threshold of `unidiff_codecs.watermark`, on

* none: pictures of 256 pixels that are not marked. `bound` is the probability that the threshold promises;
* png, jpeg: the same, marked, and written to such a file (JPEG of quality 75);
* cut: a square of 256 pixels out of a marked one of 512, at any pixel, in either file.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from unidiff_codecs.picture import as_rgb
from unidiff_codecs.watermark import KEY, find, mark

from unidiff_core.codec.mark import Mark
from unidiff_core.foundation.progress import tracked

SIDE = 256


def photographs(folder: Path | None = None) -> list[Image.Image]:
    """scikit-learn's photographs, and the pictures of a folder that are large enough."""
    from sklearn.datasets import load_sample_images

    own = [Image.fromarray(image) for image in load_sample_images().images]
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg")) if folder else []
    return [*own, *(image for path in paths if min((image := as_rgb(Image.open(path))).size) >= SIDE)]


def crops(pictures: list[Image.Image], num: int, size: int, seed: int) -> Iterator[Image.Image]:
    """Squares of the pictures in turn, at random places and scales."""
    rng = np.random.default_rng([seed, size])
    for i in tracked(range(num), "watermark", num, "crops"):
        picture = pictures[i % len(pictures)]
        side = round(math.exp(rng.uniform(math.log(SIDE), math.log(min(picture.size)))))
        left, top = (int(rng.integers(0, whole - side + 1)) for whole in picture.size)
        cut = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
        yield cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def stored(image: Image.Image, format: str) -> Image.Image:
    """A picture after it was written to a file and read again."""
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 75} if format == "JPEG" else {}))
    return as_rgb(Image.open(buffer))


def decibels(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures."""
    return float(10 * np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def measure(pictures: list[Image.Image], num: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Of each case how many were looked at, what share was detected, and how many bits agreed in how many of them.

    Args:
        pictures: to cut from.
        num: crops that are not marked (``none``), marked (``file``), and cut out of a marked one (``cut``).
        seed: of the crops.
    """
    found: dict[str, list[Mark]] = {}
    for image in crops(pictures, num.get("none", 0), SIDE, seed):
        found.setdefault("none", []).append(find(image, KEY))
    ratios = []
    for image in crops(pictures, num.get("file", 0), SIDE, seed):
        marked = mark(image, KEY)
        ratios.append(decibels(image, marked))
        _look(found, "", marked)
    rng = np.random.default_rng(seed)
    for image in crops(pictures, num.get("cut", 0), 2 * SIDE, seed):
        left, top = rng.integers(0, SIDE + 1, 2).tolist()
        _look(found, "cut ", mark(image, KEY).crop((left, top, left + SIDE, top + SIDE)))
    seen = {"decibels": [min(ratios), sum(ratios) / len(ratios)]} if ratios else {}
    return {name: _row(marks) for name, marks in found.items()} | seen


def _look(found: dict[str, list[Mark]], prefix: str, image: Image.Image) -> None:
    for format in ("PNG", "JPEG"):
        found.setdefault(prefix + format.lower(), []).append(find(stored(image, format), KEY))


def _row(marks: list[Mark]) -> dict[str, Any]:
    return {
        "num": len(marks),
        "detected": sum(row.is_there for row in marks) / len(marks),
        "bits": dict(sorted(Counter(row.matched for row in marks).items())),
        "bound": marks[0].false_positive,
    }


def main() -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--none", type=int, default=1000, help="crops that are not marked")
    add("--file", type=int, default=1000, help="marked crops, each as PNG and as JPEG")
    add("--cut", type=int, default=250, help="crops of larger marked pictures, each as PNG and as JPEG")
    add("--pictures", type=Path, help="folder of photographs besides")
    options = parser.parse_args()
    num = {name: getattr(options, name) for name in ("none", "file", "cut")}
    print(json.dumps(measure(photographs(options.pictures), num)))


if __name__ == "__main__":
    main()

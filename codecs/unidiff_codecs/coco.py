"""MS-COCO: images with several captions each, as its folders and its captions' JSON have them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from unidiff_codecs.image import square
from unidiff_codecs.picture import open_image
from unidiff_codecs.source import CAPTION, IMAGE, Damaged, PairSource, Unpaired, captions_in
from unidiff_core.data.shard import numbered
from unidiff_core.foundation.argument import check_sizes


class CocoSource(PairSource):
    """A part of MS-COCO, or anything in its format: a folder of images, and a JSON of captions.

    The JSON holds ``images``, ``[{"id": 42, "file_name": "….jpg"}, …]``, and ``annotations``, ``[{"id": 1,
    "image_id": 42, "caption": "a cat"}, …]``. It is read whole (that of val2014 has 202,654 captions); images are read
    one after the other.

    Samples come in a random order that is a function of the seed and the images' ids, and so do the captions of each:
    the first `n` samples, each with its first caption, are `n` random prompts of `n` images. An evaluation takes these.

    Args:
        images: folder of the images, ``val2014``.
        annotations: the captions' JSON, ``annotations/captions_val2014.json``.
        split: what these samples are called, and their folder of shards.
        num: samples, the first of the order; all if not given.
        size: side of the square to which images are cropped at their centre and resized (Lanczos), pixels, as PNG;
            null keeps each file's own bytes.
        seed: of the order.
        unpaired: an image without file or caption, or a caption without image, is an error, kept without it (a caption
            without image is always left out), or left out; each is counted.
        damaged: an image that cannot be opened is an error, kept without a look at any, or left out; each is counted.

    Raises:
        ValueError: if the files do not fit, or a path leads out of the folder, or an image cannot be read; names it.
    """

    def __init__(
        self,
        images: str,
        annotations: str,
        split: str = "test",
        num: int | None = None,
        size: int | None = 256,
        seed: int = 0,
        unpaired: Unpaired = "error",
        damaged: Damaged = "error",
    ) -> None:
        super().__init__(0.0, unpaired, damaged)
        check_sizes(**{name: value for name, value in (("num", num), ("size", size)) if value is not None})
        self.images, self.annotations, self.split = images, annotations, split
        self.num, self.size, self.seed = num, size, seed

    @property
    def split_names(self) -> Sequence[str]:
        """The one."""
        return (self.split,)

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The image's id in twelve digits → its file's name, in the order of the samples."""
        files, captions = self._files_by_id, self._captions_by_id
        lacking: dict[int, str] = {}
        for image, name in files.items():
            missing = [
                what for what, there in (("file", self._is_there(name)), ("caption", captions.get(image))) if not there
            ]
            if missing:
                lacking[image] = f"{name} (no {' and no '.join(missing)})"
        strays = [f"captions of image {image} (not among the images)" for image in captions if image not in files]
        self._check([*lacking.values(), *strays], len(files) + len(strays))
        empty = {image for image, told in lacking.items() if "and no" in told}
        kept = [image for image in files if image not in (empty if self.unpaired == "keep" else lacking)]
        titles = {f"{image:012d}": str(self._place(files[image])) for image in kept if self._is_there(files[image])}
        damaged = self._damaged(titles, lambda key: Path(titles[key]).read_bytes())
        kept = sorted((image for image in kept if f"{image:012d}" not in damaged), key=self._rank)
        if not kept:
            raise ValueError(f"no image of {self.annotations} is in {self.images} with a caption")
        if self.num is not None and self.num > len(kept):
            raise ValueError(f"{self.annotations} has {len(kept)} samples to take; num={self.num} asks for more")
        chosen = kept[: self.num]
        self._tell_several(sum(len(captions.get(image, [])) > 1 for image in chosen), len(chosen))
        return {f"{image:012d}": files[image] for image in chosen}

    @property
    def files(self) -> Sequence[Path]:
        """The JSON, and the images of the samples that are there."""
        return [self._json, *(self._place(name) for name in self.names.values() if self._is_there(name))]

    def members(self, key: str) -> dict[str, Any]:
        """The image, its captions in random order, and its id and file's name."""
        name = self.names[key]
        members: dict[str, Any] = {IMAGE: self._image(name)} if self._is_there(name) else {}
        captions = sorted(self._captions_by_id.get(int(key), []), key=lambda row: self._rank(row[0], "caption"))
        members |= numbered(CAPTION, [text.encode() for _, text in captions])
        return members | {"json": json.dumps({"file_name": name, "image_id": int(key)}).encode()}

    def _keys(self, split: str) -> list[str]:
        return list(self.names)

    def _rank(self, number: int, kind: str = "image") -> bytes:
        """What samples are ordered by: random, and no other for an image when others come or go."""
        return hashlib.sha256(f"{self.seed} {kind} {number}".encode()).digest()

    @property
    def _json(self) -> Path:
        return Path(self.annotations).expanduser()

    def _place(self, name: str) -> Path:
        return Path(self.images).expanduser() / name

    def _is_there(self, name: str) -> bool:
        return self._place(name).is_file()

    def _image(self, name: str) -> bytes:
        data = self._place(name).read_bytes()
        if self.size is None:
            return data
        try:
            image = square(open_image(data), self.size)
        except ValueError as error:
            raise ValueError(f"{self._place(name)}: {error}") from error
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return stream.getvalue()

    @cached_property
    def _files_by_id(self) -> dict[int, str]:
        """The id of each image that the JSON names → its file's name, by id."""
        folder = Path(self.images).expanduser()
        if not folder.is_dir():
            raise ValueError(f"no such folder: {folder}; images is that of COCO's images, val2014 say")
        files: dict[int, str] = {}
        for row in self._rows("images", id=int, file_name=str):
            name = row["file_name"]
            if files.setdefault(row["id"], name) != name:
                raise ValueError(f"{self._json}: two images have the id {row['id']}, {files[row['id']]} and {name}")
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{self._json}: the image {row['id']} is {name}, which is not in {folder}")
        if len(set(files.values())) < len(files):
            raise ValueError(f"{self._json}: one file stands for several images")
        return dict(sorted(files.items()))

    @cached_property
    def _captions_by_id(self) -> dict[int, list[tuple[int, str]]]:
        """Image's id → id and text of each of its captions that is not blank."""
        captions: dict[int, list[tuple[int, str]]] = {}
        for row in self._rows("annotations", id=int, image_id=int):
            for text in captions_in(row.get("caption"), f"{self._json}, annotation {row['id']}"):
                captions.setdefault(row["image_id"], []).append((row["id"], text))
        return captions

    def _rows(self, part: str, **fields: type) -> list[dict[str, Any]]:
        """The rows of a part of the JSON, which have these fields."""
        found = self._content.get(part)
        if not isinstance(found, list):
            raise ValueError(f"{self._json} has no list {part!r}; give COCO's captions, captions_val2014.json say")
        for row in found:
            bad = [name for name, kind in fields.items() if not isinstance(row, dict) or not _is(row.get(name), kind)]
            if bad:
                raise ValueError(f"{self._json}: {', '.join(bad)} of {part} is missing or wrong: {str(row)[:80]}")
        return found

    @cached_property
    def _content(self) -> dict[str, Any]:
        if not self._json.is_file():
            raise ValueError(f"no such file: {self._json}; annotations is COCO's captions, captions_val2014.json say")
        try:
            content = json.loads(self._json.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._json} is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self._json} is not COCO's: an object with images and annotations")
        return content


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and not (isinstance(value, int) and value < 0)

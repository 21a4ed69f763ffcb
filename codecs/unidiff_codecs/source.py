"""Images with captions that are there already: a folder of files, a Hugging Face data set on disk."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from unidiff_core import Members, Source
from unidiff_core.data.shard import numbered

IMAGE, CAPTION = "png", "txt"
"""Member endings, those of the shipped codecs. An image keeps its own bytes, of whatever format."""
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = ("metadata.jsonl", "metadata.csv")
SPLITS = ("train", "validation")

Unpaired = Literal["error", "keep", "skip"]


class PairSource(Source):
    """Images with captions, split by a hash of their names, so that a sample never changes sides as others come.

    Args:
        validation: share of the samples that is kept for validation, approximately.
        unpaired: a sample without image or without caption is an error, kept without it, or left out.
    """

    def __init__(self, validation: float, unpaired: Unpaired) -> None:
        if not 0 <= validation < 1:
            raise ValueError(f"validation is a share of the samples, from 0 to below 1, not {validation}")
        self.validation, self.unpaired = validation, unpaired

    @property
    @abstractmethod
    def names(self) -> Mapping[str, str]:
        """Key → name of all samples, in order; what is left out is not among them."""

    @abstractmethod
    def members(self, key: str) -> dict[str, Any]:
        """The members of one sample."""

    @property
    def splits(self) -> dict[str, int]:
        """Samples of `train` and `validation`; a split of none is left out."""
        counts = {split: len(self._keys(split)) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}

    def samples(self, split: str) -> Iterator[Members]:
        """Image, caption or several, and under ``json`` what else is known."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {' and '.join(SPLITS)}")
        for key in self._keys(split):
            yield {"__key__": key} | self.members(key)

    def _keys(self, split: str) -> list[str]:
        held_out = split == "validation"
        return [key for key, name in self.names.items() if (_fraction(name) < self.validation) == held_out]

    def _check(self, lacking: Sequence[str], total: int, hint: str = "") -> None:
        """Complain of samples that are not pairs, each described; `hint` says what may be meant."""
        if not lacking or (self.unpaired == "keep" and not hint):
            return
        text = f"{len(lacking)} of {total} samples are not pairs: {_shown(lacking)}{hint}"
        if self.unpaired == "keep":
            warnings.warn(f"kept: {text}", stacklevel=2)
            return
        if self.unpaired == "error":
            raise ValueError(f"{text}; unpaired=keep takes them as they are, unpaired=skip leaves them out")
        warnings.warn(f"left out: {text}", stacklevel=2)

    def _tell_several(self, num: int, total: int) -> None:
        if num:
            warnings.warn(
                f"{num} of {total} samples have several captions: all are kept, and one is drawn at each use",
                stacklevel=2,
            )


class FolderSource(PairSource):
    """A folder of images with captions and its subfolders: ``cat.txt`` beside ``cat.jpg``, or a ``metadata.jsonl``/csv.

    An image's caption is in the text file of the same name (``cat.jpg``, ``cat.txt``), or in a ``metadata.jsonl`` or
    ``metadata.csv`` of its folder, as Hugging Face's imagefolder has it: a line ``{"file_name": "cat.jpg", "text": "a
    cat"}`` each, other fields being kept as labels. Several captions (a list, or several lines of one image) are all
    kept; one is drawn at each use. Links are followed, those to folders elsewhere with a warning; one to a file
    elsewhere is an error. What is hidden is left out.

    Args:
        folder: of the files.
        text: field of the metadata that holds the caption.
        validation: share of the images that is kept for validation.
        unpaired: an image without caption is an error, kept without it, or left out.

    Raises:
        ValueError: if there are no images, or a caption is missing or without its image; names them.
    """

    def __init__(self, folder: str, text: str = "text", validation: float = 0.05, unpaired: Unpaired = "error") -> None:
        super().__init__(validation, unpaired)
        self.folder, self.text = folder, text

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Key → the image's path in the folder."""
        root, files = Path(self.folder).expanduser(), self._files
        images = [path for path in files if path.suffix.lower() in IMAGES]
        if not images:
            raise ValueError(f"no images in {root}: none of its {len(files)} files ends in {', '.join(IMAGES)}")
        self._report_ignored(files, images)
        names = [path.relative_to(root).as_posix() for path in images]
        lacking = {name for name in names if not self._captions(name)}
        self._check([f"{name} (no caption)" for name in names if name in lacking], len(names), self._fields_there_are)
        self._tell_several(sum(len(self._captions(name)) > 1 for name in names), len(names))
        return _keyed(name for name in names if self.unpaired == "keep" or name not in lacking)

    @property
    def files(self) -> Sequence[Path]:
        """All of the folder that are not hidden."""
        return self._files

    @cached_property
    def _files(self) -> list[Path]:
        root = Path(self.folder).expanduser()
        if not root.is_dir():
            raise ValueError(f"no such folder: {root}")
        return sorted(_walk(root, root.resolve(), set()))

    def members(self, key: str) -> dict[str, Any]:
        """The image's bytes, its captions if it has any, its file's name and other metadata."""
        name = self.names[key]
        captions = self._captions(name)
        members: dict[str, Any] = {IMAGE: (Path(self.folder).expanduser() / name).read_bytes()}
        members |= numbered(CAPTION, [caption.encode() for caption in captions])
        labels = {field: value for field, value in self._metadata.get(name, {}).items() if field != self.text}
        return members | {"json": json.dumps(labels | {"file_name": name}, ensure_ascii=False).encode()}

    def _captions(self, name: str) -> list[str]:
        if captions := self._metadata.get(name, {}).get(self.text):
            return list(captions)
        beside = (Path(self.folder).expanduser() / name).with_suffix(".txt")
        return captions_in(_read_text(beside), str(beside)) if beside.is_file() else []

    @property
    def _fields_there_are(self) -> str:
        """What to say where no line of the metadata has the field of the captions."""
        fields = dict.fromkeys(field for row in self._metadata.values() for field in row)
        if not fields or self.text in fields:
            return ""
        return f"; the metadata have no field {self.text!r} but {', '.join(fields)}: choose one, text={[*fields][-1]}"

    @cached_property
    def _metadata(self) -> dict[str, dict[str, Any]]:
        """Image's path in the folder → its line, captions as a list; of several lines the first, with all captions."""
        root = Path(self.folder).expanduser()
        rows: dict[str, dict[str, Any]] = {}
        for path in (path for path in self._files if path.name in METADATA):
            for where, row in _rows_of(path):
                image = Path(os.path.normpath(path.parent / row["file_name"]))
                if not image.is_file():
                    raise ValueError(f"{where}: there is no file {image}")
                if not image.is_relative_to(os.path.normpath(root)):
                    raise ValueError(f"{where}: {image} is not in {root}")
                name = image.relative_to(os.path.normpath(root)).as_posix()
                if self.text in row:
                    row[self.text] = captions_in(row[self.text], where)
                earlier = rows.setdefault(name, row)
                if earlier is not row and self.text in row:
                    earlier[self.text] = [*earlier.get(self.text, []), *row[self.text]]
        return rows

    def _report_ignored(self, files: Sequence[Path], images: Sequence[Path]) -> None:
        used = {*images, *(image.with_suffix(".txt") for image in images)}
        ignored = [str(path) for path in files if path not in used and path.name not in METADATA]
        if ignored:
            warnings.warn(
                f"{len(ignored)} files in {self.folder} are ignored, no images: {_shown(ignored)}", stacklevel=2
            )


class DatasetSource(PairSource):
    """A Hugging Face data set on this machine, of which nothing is fetched or run.

    Either a folder that its `save_to_disk` wrote, or Parquet files (a file, or a folder of them). A data set with
    splits gives the one that is named. For an imagefolder, see `FolderSource`.

    Args:
        path: of the data set.
        split: the split to read, if it has several.
        image: column of images.
        caption: column of captions, texts or lists of them; several are all kept, and one is drawn at each use.
        validation: share of the rows that is kept for validation, by the images' file names, or the rows' numbers.
        unpaired: a row without image or caption is an error, kept without it, or left out.
        image_folder: where images may lie that rows name by a path, and what such a path is relative to: the data
            set's own folder if not given. No other file is read, whatever a stranger's rows name.

    Raises:
        ValueError: if it cannot be read, or has no such split or column (says which there are), or a row names an
            image outside of the folder.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        image: str = "image",
        caption: str = "text",
        validation: float = 0.05,
        unpaired: Unpaired = "error",
        image_folder: str | None = None,
    ) -> None:
        super().__init__(validation, unpaired)
        self.path, self.split, self.image, self.caption = path, split, image, caption
        self.image_folder = image_folder

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The row's number in eight digits → its image's file name, or the same number if it has none."""
        names, lacking = {}, []
        column = self._rows.data.column(self.caption).to_pylist()
        captions = [captions_in(value, f"{self.path}, row {number}") for number, value in enumerate(column)]
        for number, (image, texts) in enumerate(zip(self._image_names(), captions, strict=True)):
            missing = [f"no {what}" for what, value in (("image", image), ("caption", texts)) if not value]
            if missing:
                lacking.append(f"row {number} ({' and '.join(missing)})")
            if not missing or (self.unpaired == "keep" and len(missing) == 1):
                names[f"{number:08d}"] = image or f"{number:08d}"
        self._check(lacking, len(captions))
        self._tell_several(sum(len(texts) > 1 for texts in captions), len(captions))
        return names

    def members(self, key: str) -> dict[str, Any]:
        """The image's bytes, its captions, and the columns that hold numbers or texts."""
        row = dict(self._rows[int(key)])
        image, captions = row.pop(self.image), captions_in(row.pop(self.caption), f"{self.path}, row {int(key)}")
        members: dict[str, Any] = {}
        if image is not None:
            members[IMAGE] = (
                image if isinstance(image, bytes) else image["bytes"] or self._read(image["path"], int(key))
            )
        labels: dict[str, Any] = {field: value for field, value in row.items() if isinstance(value, (str, int, float))}
        members |= numbered(CAPTION, [caption.encode() for caption in captions])
        return members | {"json": json.dumps(labels, ensure_ascii=False).encode()}

    @property
    def files(self) -> Sequence[Path]:
        """The data set's own; images that its rows name by path are not among them."""
        path = Path(self.path).expanduser()
        return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())

    def _read(self, name: str, row: int) -> bytes:
        """An image that a row names by a path."""
        path = Path(self.path).expanduser()
        folder = Path(self.image_folder).expanduser() if self.image_folder else path if path.is_dir() else path.parent
        place = (folder / name).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise ValueError(
                f"{self.path}, row {row}: its image is {name}, which is outside of {folder}, and is not read; if these "
                "are your images, say where they lie with image_folder"
            )
        return place.read_bytes()

    def _image_names(self) -> list[str]:
        """A name of each row's image, without reading it; empty if it has none."""
        import pyarrow as pa  # type: ignore[import-untyped]

        column = self._rows.data.column(self.image)
        there = [not absent for absent in column.is_null().to_pylist()]
        names: list[str | None] = [None] * len(there)
        if pa.types.is_struct(column.type):
            names = [name for chunk in column.chunks for name in chunk.field("path").to_pylist()]
        return [
            name or f"{i:08d}" if is_there else "" for i, (name, is_there) in enumerate(zip(names, there, strict=True))
        ]

    @cached_property
    def _rows(self) -> Any:
        """The data set, its images not decoded."""
        import datasets  # type: ignore[import-untyped]

        rows = self._open()
        if unknown := [name for name in (self.image, self.caption) if name not in rows.features]:
            known = ", ".join(rows.features)
            raise ValueError(
                f"{self.path} has no column {' or '.join(unknown)}; it has {known}. Name them: image, caption"
            )
        kind = rows.features[self.image]
        if isinstance(kind, datasets.Image):
            return rows.cast_column(self.image, datasets.Image(decode=False))
        if kind not in (datasets.Value("binary"), datasets.Value("large_binary")):
            raise ValueError(f"the column {self.image!r} of {self.path} holds no images, but {kind}")
        return rows

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise ValueError("reading a Hugging Face data set needs `pip install datasets`") from error
        path = Path(self.path).expanduser()
        if (path / "dataset_dict.json").is_file():
            splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
            if self.split not in splits:
                raise ValueError(f"{path} has no split {self.split!r}; it has {', '.join(splits)}")
            return datasets.load_from_disk(path / self.split)
        if (path / "state.json").is_file():
            return datasets.load_from_disk(path)
        if parquet := [path] if path.is_file() and path.suffix == ".parquet" else self._parquet(path):
            return datasets.Dataset.from_parquet([str(file) for file in parquet])
        raise ValueError(f"no data set in {path}: neither what save_to_disk writes nor *.parquet files")

    def _parquet(self, folder: Path) -> list[Path]:
        """The files of the split in a folder of Parquet files, told apart by their names as `datasets` does."""
        from datasets.data_files import DataFilesDict, get_data_patterns  # type: ignore[import-untyped]

        files = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
        if not files:
            return []
        patterns = get_data_patterns(str(folder.resolve()))
        found = DataFilesDict.from_patterns(patterns, str(folder.resolve()), allowed_extensions=[".parquet"])
        splits = {str(split): sorted(map(Path, names)) for split, names in found.items() if names}
        if self.split not in splits:
            raise ValueError(f"{folder} has no split {self.split!r}; its Parquet files are of {', '.join(splits)}")
        of_none = len(files) - sum(map(len, splits.values()))
        if of_none:
            warnings.warn(
                f"left out: {of_none} of {len(files)} Parquet files in {folder} are of no split; the names of the "
                f"others say {', '.join(splits)}",
                stacklevel=2,
            )
        return splits[self.split]


def _keyed(names: Iterable[str]) -> dict[str, str]:
    """Shard key → name. A key has no dot, since a member's ending begins at the first one."""
    keyed: dict[str, str] = {}
    for name in names:
        key = name.replace(".", "_")
        if key in keyed:
            raise ValueError(f"{name} and {keyed[key]} would have one key in a shard, {key}; rename one")
        keyed[key] = name
    return keyed


def _fraction(name: str) -> float:
    """A number from 0 to below 1 that is a fixed function of the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _walk(folder: Path, root: Path, above: set[Path]) -> Iterator[Path]:
    """All files of a folder and its subfolders that are not hidden; links are followed, but not in a circle.

    Raises:
        ValueError: if a link leads to a file out of `root`; names it.
    """
    above = above | {folder.resolve()}
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_symlink() and root not in [(target := path.resolve()), *target.parents]:
            if not path.is_dir():
                raise ValueError(
                    f"{path} is a link out of the folder, to {target}: whoever made it would have that file among the "
                    "samples. Put a copy there if you want it, or link the folder that it is in"
                )
            if path.resolve() not in above:
                warnings.warn(f"{path} leads to {target}: what is there is among the samples", stacklevel=2)
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in above:
            yield from _walk(path, root, above)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error


def _rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line of a metadata file is, and its fields."""
    lines = _read_text(path)
    if path.suffix == ".csv":
        yield from _rows_of_csv(path, lines)
        return
    for number, line in enumerate(lines.split("\n"), 1):  # not splitlines: a JSON text may hold U+2028 and its like
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(line, where)


def _rows_of_csv(path: Path, lines: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        yield from _table_of(path, csv.DictReader(io.StringIO(lines, newline="")))
    except csv.Error as error:
        raise ValueError(f"{path}: {error}") from error


def _table_of(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "file_name" not in (fields := reader.fieldnames or []):
        raise ValueError(f"{path} has no column file_name, only {', '.join(fields) or 'nothing'}")
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            raise ValueError(f"{where} has not the {len(fields)} fields {', '.join(fields)}; quote what holds a comma")
        yield where, dict(row)


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError(f'{where} is no {{"file_name": …, "text": …}}: {line[:80]}')
    return row


def captions_in(value: Any, where: str) -> list[str]:
    """The captions that a field holds, without surrounding blanks: those of a list, or one; none if it is missing.

    Raises:
        ValueError: if it is neither a text, a list of texts, nor missing (null, NaN, blank); names where it is.
    """
    texts = [text for text in (value if isinstance(value, list) else [value]) if not _is_missing(text)]
    if any(not isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: a caption is a text or a list of texts, not {str(value)[:80]!r}")
    return [text.strip() for text in texts if text.strip()]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)

"""Images with captions that are there already: a folder of files, a Hugging Face data set on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

from unidiff_codecs.picture import why_unreadable
from unidiff_codecs.text_file import read_table, read_text
from unidiff_core import Members, Source
from unidiff_core.data.shard import numbered
from unidiff_core.foundation.progress import tracked

IMAGE, CAPTION = "png", "txt"
"""Member endings, those by which the shipped codecs find them. An image keeps its own bytes, of whatever format."""
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
KINDS = {".txt": ".txt without an image", "": "without an ending"}
METADATA = ("metadata.jsonl", "metadata.csv")
SPLITS = ("train", "validation")

Unpaired = Literal["error", "keep", "skip"]
Damaged = Unpaired


class PairSource(Source):
    """Images with captions, split by a hash of their names, so that a sample never changes sides as others come.

    Args:
        validation: share of the samples that is kept for validation, approximately.
        unpaired: a sample without image or without caption is an error, kept without it, or left out.
        damaged: a sample whose image cannot be opened is an error, kept as it is without a look at any image, or left
            out.
    """

    def __init__(self, validation: float, unpaired: Unpaired, damaged: Damaged) -> None:
        if not 0 <= validation < 1:
            raise ValueError(f"validation is a share of the samples, from 0 to below 1, not {validation}")
        for name, value in (("unpaired", unpaired), ("damaged", damaged)):
            if value not in get_args(Unpaired):
                raise ValueError(f"{name} is one of {', '.join(get_args(Unpaired))}, not {value!r}")
        self.validation, self.unpaired, self.damaged = validation, unpaired, damaged

    @property
    @abstractmethod
    def names(self) -> Mapping[str, str]:
        """Key → name of all samples, in order; what is left out is not among them."""

    @abstractmethod
    def members(self, key: str) -> dict[str, Any]:
        """The members of one sample."""

    @property
    def split_names(self) -> Sequence[str]:
        """`train` and `validation`."""
        return SPLITS

    @property
    def splits(self) -> dict[str, int]:
        """Samples of each split; a split of none is left out."""
        counts = {split: len(self._keys(split)) for split in self.split_names}
        return {split: count for split, count in counts.items() if count}

    def samples(self, split: str) -> Iterator[Members]:
        """Image, caption or several, and under ``json`` what else is known."""
        if split not in self.split_names:
            raise ValueError(f"no split {split!r}; there are {' and '.join(self.split_names)}")
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
            raise ValueError(
                f"{text}; --source.unpaired=keep takes them as they are, --source.unpaired=skip leaves them out"
            )
        warnings.warn(f"left out: {text}", stacklevel=2)

    def _damaged(self, titles: Mapping[str, str], read: Callable[[str], bytes]) -> set[str]:
        """Which samples' images cannot be opened. They are counted and named.

        Args:
            titles: key → what a person calls the image.
            read: key → the image's bytes.
        """
        if self.damaged == "keep":
            return set()
        reasons = why_unreadable(partial(read, key) for key in titles)
        shown = tracked(reasons, "check images", len(titles), "images")
        found = {key: why for key, why in zip(titles, shown, strict=True) if why}
        if found:
            named = _shown([f"{titles[key]} ({why})" for key, why in found.items()])
            text = f"{len(found)} of {len(titles)} images cannot be read: {named}"
            if self.damaged == "error":
                raise ValueError(f"{text}; --source.damaged=skip leaves them out")
            warnings.warn(f"left out: {text}", stacklevel=2)
        return {*found}

    def _tell_several(self, num: int, total: int) -> None:
        if num:
            warnings.warn(
                f"{num} of {total} samples have several captions: all are kept, and one is drawn at each use",
                stacklevel=2,
            )


class FolderSource(PairSource):
    """A folder of images with captions and its subfolders: ``cat.txt`` beside ``cat.jpg``, or a ``metadata.jsonl``/csv.

    An image's caption is in the text file of the same name (``cat.jpg``, ``cat.txt``), or in a ``metadata.jsonl`` or
    ``metadata.csv`` (UTF-8, separated by commas) of its folder, as Hugging Face's imagefolder has it: a line
    ``{"file_name": "cat.jpg", "text": "a cat"}`` each, other fields being kept as labels. Where both are, the metadata
    count. Several captions (a list, or several lines of one image in the metadata) are all kept; one is drawn at each
    use. A text file of several lines is one caption, unless `caption_per_line`. Endings may be in capitals. Links are
    followed, those to folders elsewhere with a warning; one to a file elsewhere is an error. What is hidden is left
    out. What is not used is counted and named.

    In shards an image is the member ``.png``, which is what the shipped codecs look for, with its file's own bytes: of
    a JPEG, say. Whoever reads it goes by the bytes, as `open_image` does; ``json`` has the file's name.

    Every image is decoded once before the first sample is given: about 1 ms for a JPEG of 512 pixels a side and 7 ms
    for a PNG, by one of the processors. ``damaged: keep`` spares that where images are known to be whole.

    Args:
        folder: of the files.
        text: field of the metadata that holds the caption.
        validation: share of the images that is kept for validation.
        unpaired: an image without caption is an error, kept without it, or left out.
        damaged: an image that cannot be opened is an error, kept without a look at any, or left out.
        file_name: field of the metadata that holds the image's path, relative to the folder that they are in.
        caption_per_line: whether each line of a text file is a caption, of which one is drawn at each use.

    Raises:
        ValueError: if there are no images, or a caption is missing or without its image, or an image is damaged; names
            them.
    """

    def __init__(
        self,
        folder: str,
        text: str = "text",
        validation: float = 0.05,
        unpaired: Unpaired = "error",
        damaged: Damaged = "error",
        file_name: str = "file_name",
        caption_per_line: bool = False,
    ) -> None:
        super().__init__(validation, unpaired, damaged)
        self.folder, self.text, self.file_name, self.caption_per_line = folder, text, file_name, caption_per_line

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Key → the image's path in the folder."""
        root, files = self._root, self._files
        images = [path for path in files if path.suffix.lower() in IMAGES]
        if not images:
            raise ValueError(f"no images in {root}: none of its {len(files)} files ends in {', '.join(IMAGES)}")
        self._tell_ignored(files, images)
        names = [path.relative_to(root).as_posix() for path in images]
        captions = self._captions
        self._tell_choices(names)
        lacking = {name for name in names if not captions[name]}
        self._check([f"{name} (no caption)" for name in names if name in lacking], len(names), self._fields_there_are)
        self._tell_several(sum(len(captions[name]) > 1 for name in names), len(names))
        keyed = _keyed(name for name in names if self.unpaired == "keep" or name not in lacking)
        damaged = self._damaged(keyed, lambda key: (root / keyed[key]).read_bytes())
        return {key: name for key, name in keyed.items() if key not in damaged}

    @property
    def files(self) -> Sequence[Path]:
        """All of the folder that are not hidden."""
        return self._files

    @property
    def _root(self) -> Path:
        return Path(self.folder).expanduser()

    @cached_property
    def _files(self) -> list[Path]:
        if not self._root.is_dir():
            raise ValueError(f"no such folder: {self._root}")
        return sorted(_walk(self._root, self._root.resolve(), set()))

    def members(self, key: str) -> dict[str, Any]:
        """The image's bytes, its captions if it has any, its file's name and other metadata."""
        name = self.names[key]
        members: dict[str, Any] = {IMAGE: (self._root / name).read_bytes()}
        members |= numbered(CAPTION, [caption.encode() for caption in self._captions[name]])
        labels = self._labels(self._metadata.get(name, {})) | {"file_name": name}
        return members | {"json": json.dumps(labels, ensure_ascii=False).encode()}

    def _labels(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {field: value for field, value in row.items() if field not in (self.text, self.file_name)}

    @cached_property
    def _captions(self) -> dict[str, list[str]]:
        """Image's path in the folder → its captions."""
        found = {}
        for path in self._files:
            if path.suffix.lower() in IMAGES:
                name = path.relative_to(self._root).as_posix()
                found[name] = list(self._metadata.get(name, {}).get(self.text) or self._captions_beside(path))
        return found

    def _captions_beside(self, image: Path) -> list[str]:
        if not (beside := self._texts.get(image.with_suffix(""))):
            return []
        text = read_text(beside)
        return captions_in(text.split("\n") if self.caption_per_line else text, str(beside))

    @cached_property
    def _texts(self) -> dict[Path, Path]:
        """Path without its ending → the text file; of ``.TXT`` and ``.txt`` the second, as they are sorted."""
        return {path.with_suffix(""): path for path in self._files if path.suffix.lower() == ".txt"}

    @property
    def _fields_there_are(self) -> str:
        """What to say where no line of the metadata has the field of the captions."""
        fields = dict.fromkeys(field for row in self._metadata.values() for field in row)
        if not fields or self.text in fields:
            return ""
        others = [field for field in fields if field != self.file_name]
        choice = f": choose one, --source.text={others[-1]}" if others else ""
        return f"; the metadata have no field {self.text!r} but {', '.join(fields)}{choice}"

    @cached_property
    def _metadata(self) -> dict[str, dict[str, Any]]:
        """Image's path in the folder → its line, captions as a list; of several lines the first, with all captions."""
        root = self._root
        rows: dict[str, dict[str, Any]] = {}
        others: list[str] = []
        for path in (path for path in self._files if path.name.lower() in METADATA):
            for where, row in self._rows_of(path):
                image = Path(os.path.normpath(path.parent / row[self.file_name]))
                if not image.is_file():
                    raise ValueError(f"{where}: there is no file {image}")
                if not image.is_relative_to(os.path.normpath(root)):
                    raise ValueError(f"{where}: {image} is not in {root}")
                name = image.relative_to(os.path.normpath(root)).as_posix()
                if self.text in row:
                    row[self.text] = captions_in(row[self.text], where)
                earlier = rows.setdefault(name, row)
                others += [where] * (self._labels(earlier) != self._labels(row))
                if earlier is not row and self.text in row:
                    earlier[self.text] = [*earlier.get(self.text, []), *row[self.text]]
        _tell(f"further lines of an image, of which captions are used, other fields are not: {len(others)}", others)
        return rows

    def _rows_of(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where each line of a metadata file is, and its fields."""
        if path.suffix.lower() == ".csv":
            fields, rows = read_table(path)
            if self.file_name not in fields:
                first = next(rows, (0, dict.fromkeys(fields, "")))[1]
                known = ", ".join(fields) or "nothing"
                raise ValueError(f"{path} has no column {self.file_name}, only {known}{self._choice(first)}")
            yield from ((f"{path}, line {number}", dict(row)) for number, row in rows)
            return
        for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines: JSON may hold U+2028
            if line.strip():
                where = f"{path}, line {number}"
                yield where, self._parse(line, where)

    def _parse(self, line: str, where: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get(self.file_name), str):
            choice = self._choice(row) if isinstance(row, dict) and self.file_name not in row else ""
            raise ValueError(f'{where} is no {{"{self.file_name}": …, "{self.text}": …}}: {line[:80]}{choice}')
        return row

    def _choice(self, row: Mapping[str, Any]) -> str:
        """Which options choose the fields of a line that does not have those that are expected."""
        files = [field for field, value in row.items() if str(value).lower().endswith(IMAGES)]
        if not files:
            return "; the one with the names of the images is chosen by --source.file_name" if row else ""
        others = [field for field in row if field not in files] if self.text not in row else []
        return f"; choose: --source.file_name={files[0]}" + "".join(f" --source.text={field}" for field in others[-1:])

    def _tell_ignored(self, files: Sequence[Path], images: Sequence[Path]) -> None:
        used = {*images, *(self._texts.get(image.with_suffix("")) for image in images)}
        ignored = [path for path in files if path not in used and path.name.lower() not in METADATA]
        kinds = Counter(KINDS.get(path.suffix.lower(), path.suffix.lower()) for path in ignored)
        if ignored:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            _tell(f"ignored in {self.folder}: {counts}", [path.relative_to(self._root).as_posix() for path in ignored])

    def _tell_choices(self, names: Sequence[str]) -> None:
        """Tell, counted, where a caption could have been meant in another way."""
        texts = {name: path for name in names if (path := self._texts.get((self._root / name).with_suffix("")))}
        unused = {name: path for name, path in texts.items() if self._metadata.get(name, {}).get(self.text)}
        read = {name: path for name, path in texts.items() if name not in unused}
        _tell(f"text files not used, as the metadata have captions: {len(unused)} of {len(texts)}", [*unused])
        num_of = Counter(read.values())
        shared = [name for name, path in read.items() if num_of[path] > 1]
        _tell(f"images that share their text file, and its caption, with another: {len(shared)}", shared)
        long = [path.name for name, path in read.items() if any("\n" in text for text in self._captions[name])]
        text = f"text files of several lines, each one caption with line breaks: {len(long)} of {len(read)}"
        _tell(text, long, "; --source.caption_per_line=true makes a caption of each line")
        strangers = sorted(self._metadata.keys() - {*names})
        _tell(f"left out: what the metadata name, but is none of the {len(names)} images: {len(strangers)}", strangers)


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
        damaged: a row whose image cannot be opened is an error, kept without a look at any image, or left out.
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
        damaged: Damaged = "error",
    ) -> None:
        super().__init__(validation, unpaired, damaged)
        self.path, self.split, self.image, self.caption = path, split, image, caption
        self.image_folder = image_folder

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The row's number in eight digits → its image's file name, or the same number if it has none."""
        names, lacking, titles = {}, [], dict[str, str]()
        column = self._rows.data.column(self.caption).to_pylist()
        captions = [captions_in(value, f"{self.path}, row {number}") for number, value in enumerate(column)]
        for number, (image, texts) in enumerate(zip(self._image_names(), captions, strict=True)):
            missing = [f"no {what}" for what, value in (("image", image), ("caption", texts)) if not value]
            if missing:
                lacking.append(f"row {number} ({' and '.join(missing)})")
            if not missing or (self.unpaired == "keep" and len(missing) == 1):
                names[f"{number:08d}"] = image or f"{number:08d}"
                titles |= {f"{number:08d}": f"row {number}"} if image else {}
        self._check(lacking, len(captions))
        self._tell_several(sum(len(texts) > 1 for texts in captions), len(captions))
        damaged = self._damaged(titles, lambda key: self._content(self._rows[int(key)][self.image], int(key)))
        return {key: name for key, name in names.items() if key not in damaged}

    def members(self, key: str) -> dict[str, Any]:
        """The image's bytes, its captions, and the columns that hold numbers or texts."""
        row = dict(self._rows[int(key)])
        image, captions = row.pop(self.image), captions_in(row.pop(self.caption), f"{self.path}, row {int(key)}")
        members: dict[str, Any] = {}
        if image is not None:
            members[IMAGE] = self._content(image, int(key))
        labels: dict[str, Any] = {field: value for field, value in row.items() if isinstance(value, (str, int, float))}
        members |= numbered(CAPTION, [caption.encode() for caption in captions])
        return members | {"json": json.dumps(labels, ensure_ascii=False).encode()}

    @property
    def files(self) -> Sequence[Path]:
        """The data set's own; images that its rows name by path are not among them."""
        path = Path(self.path).expanduser()
        return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())

    def _content(self, image: Any, row: int) -> bytes:
        """An image's bytes, which a row holds or names by a path."""
        return image if isinstance(image, bytes) else image["bytes"] or self._read(image["path"], row)

    def _read(self, name: str, row: int) -> bytes:
        """An image that a row names by a path."""
        path = Path(self.path).expanduser()
        folder = Path(self.image_folder).expanduser() if self.image_folder else path if path.is_dir() else path.parent
        place = (folder / name).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise ValueError(
                f"{self.path}, row {row}: its image is {name}, which is outside of {folder}, and is not read; if these "
                "are your images, say where they lie with --source.image_folder"
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
                f"{self.path} has no column {' or '.join(unknown)}; it has {known}. Name them: --source.image, "
                "--source.caption"
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


def _tell(text: str, names: Sequence[str], then: str = "") -> None:
    """Warn of what concerns these, unless there are none."""
    if names:
        warnings.warn(f"{text} ({_shown(names)}){then}", stacklevel=3)

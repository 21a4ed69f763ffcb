"""Rows of a table: where they come from, and a codec for their numbers. Labels are `LabelCodec`'s."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unidiff_codecs.text_file import read_table
from unidiff_core import Codec, EmptyRaw, Members, Source, Stream
from unidiff_core.codec.weights import locate, read_config, require

NUMBERS = "numbers.json"
SKLEARN = "sklearn:"
"""What the name of a table that scikit-learn ships begins with."""
TARGET = "target"

Row = dict[str, str | None]
"""Column → cell as text; None where it is empty."""


class NumbersCodec(Codec):
    """Numbers of a row ⇄ stream ``numbers``, standardised by the mean and deviation of the training rows.

    A raw sample is a number, of several columns a list of them in order. Stored and latent: ``numbers`` float32
    ``[b, columns]``, (x − mean)/std by the statistics of the training rows.

    Args:
        columns: of the table.
        statistics: folder that `NumbersTraining` exported.
    """

    licence: ClassVar[str] = "the table's"
    extension: ClassVar[str] = "num"
    weights: ClassVar[tuple[str, ...]] = ("statistics",)

    def __init__(self, columns: list[str], statistics: str) -> None:
        super().__init__()
        if not columns or len({*columns}) < len(columns):
            raise ValueError(f"columns are one or more different names, not {columns}")
        self.columns, self.statistics = list(columns), statistics
        self._moments: np.ndarray | None = None

    @property
    def streams(self) -> Mapping[str, Stream]:
        """One vector."""
        return {"numbers": Stream.vector(len(self.columns))}

    def encode(self, raws: Sequence[Any]) -> dict[str, Tensor]:
        """Numbers → ``numbers``.

        Raises:
            ValueError: if one is not finite, or there are more or fewer than columns.
        """
        mean, std = self._load()
        rows = np.array([self._checked(raw) for raw in raws], dtype=float).reshape(len(raws), len(self.columns))
        return {"numbers": torch.from_numpy((rows - mean) / std).float()}

    def decode(self, latents: Mapping[str, Tensor]) -> list[Any]:
        """``numbers`` → numbers."""
        mean, std = self._load()
        rows = (latents["numbers"].double().cpu().numpy() * std + mean).tolist()
        return [row[0] for row in rows] if len(self.columns) == 1 else rows

    def from_bytes(self, data: bytes) -> Any:
        """Numbers between commas → number or numbers.

        Raises:
            EmptyRaw: if there is nothing.
            ValueError: if one is no finite number, or there are more or fewer than columns.
        """
        return self.parse(data.decode("ascii", errors="replace"))

    def to_bytes(self, raw: Any) -> bytes:
        """Numbers → text with commas, in full precision."""
        return ",".join(repr(float(x)) for x in self._listed(raw)).encode()

    def parse(self, text: str) -> Any:
        """As `from_bytes`."""
        if not text.strip():
            raise EmptyRaw(f"no number for {', '.join(self.columns)}")
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(f"{text.strip()!r} is no number, or several between commas") from None
        self._checked(numbers)
        return numbers[0] if len(self.columns) == 1 else numbers

    def _listed(self, raw: Any) -> Sequence[float]:
        return raw if isinstance(raw, (list, tuple)) else [raw]

    def _checked(self, raw: Any) -> list[float]:
        numbers = [float(x) for x in self._listed(raw)]
        if len(numbers) != len(self.columns) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{raw!r} is not one finite number for each of {', '.join(self.columns)}")
        return numbers

    def _load(self) -> np.ndarray:
        """Means and standard deviations, ``[2, columns]``."""
        if self._moments is None:
            folder = locate(self.statistics, (NUMBERS,))
            require(folder, NUMBERS)
            known = read_config(folder / NUMBERS)
            if absent := [name for name in self.columns if name not in known]:
                raise ValueError(f"{folder / NUMBERS} has no column {absent[0]!r}; it has {', '.join(known)}")
            self._moments = np.array([[known[name][key] for name in self.columns] for key in ("mean", "std")])
        return self._moments


class TableSource(Source):
    """Rows of a table. Each column is a modality, or some of them together; an empty cell is a missing modality.

    A sample has a member ``<modality>.num`` for each number or group of numbers, and ``<modality>.cls`` for each label.
    A group lacks its member if one of its cells is empty. The labels' cells are also in ``json``.

    Args:
        table: path of a CSV file with a header, or a Parquet file; or ``sklearn:wine``, ``sklearn:breast_cancer`` and
            other tables that scikit-learn ships (the first two: UCI Machine Learning Repository, CC BY 4.0). What is
            not a word character in a column's name becomes an underscore.
        labels: columns that hold labels; all others hold numbers.
        columns: those to take, by their cleaned names; all if not given.
        groups: modality → columns of numbers that it has together.
        test_share: share of the rows that are `test`, drawn by `seed`.
        seed: of that draw.
        empty: cells that are taken for empty.

    Raises:
        ValueError: if a column that is named is not there, or a number is none; says where.
    """

    def __init__(
        self,
        table: str,
        labels: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        groups: dict[str, list[str]] | None = None,
        test_share: float = 0.2,
        seed: int = 0,
        empty: Sequence[str] = ("", "NA", "N/A", "NaN", "nan", "null", "?"),
    ) -> None:
        if not 0 < test_share < 1:
            raise ValueError(f"test_share is between 0 and 1, not {test_share}")
        self.table, self.labels, self.columns = table, tuple(labels), None if columns is None else tuple(columns)
        self.groups, self.test_share, self.seed, self.empty = dict(groups or {}), test_share, seed, tuple(empty)
        self._rows: list[Row] | None = None

    @property
    def files(self) -> Sequence[Path]:
        """The table, unless it comes with scikit-learn."""
        return () if self.table.startswith(SKLEARN) else (Path(self.table).expanduser(),)

    @property
    def splits(self) -> dict[str, int]:
        """Rows of `train` and `test`."""
        return {split: len(self._places(split)) for split in ("train", "test")}

    def rows(self, split: str) -> list[Row]:
        """The rows of a split: column → cell as text, None where it is empty."""
        rows = self._read()
        return [rows[i] for i in self._places(split)]

    def samples(self, split: str) -> Iterator[Members]:
        """A member for each cell, or group of cells, that is not empty."""
        for place, row in zip(self._places(split), self.rows(split), strict=True):
            members: dict[str, Any] = {"__key__": f"{place:06d}"}
            for name, columns in self.modalities.items():
                cells = [row[column] for column in columns]
                ending = "cls" if name in self.labels else NumbersCodec.extension
                if None not in cells:
                    members[f"{name}.{ending}"] = ",".join(map(str, cells)).encode()
            known = {name: row[name] for name in self.labels if row.get(name) is not None}
            yield {**members, "json": json.dumps(known).encode()}

    @property
    def modalities(self) -> dict[str, list[str]]:
        """Modality → its columns."""
        grouped = {column for columns in self.groups.values() for column in columns}
        return self.groups | {name: [name] for name in self._read()[0] if name not in grouped}

    def _places(self, split: str) -> list[int]:
        num = len(self._read())
        order = np.random.default_rng(self.seed).permutation(num)
        num_test = max(1, round(self.test_share * num))
        parts = {"train": order[num_test:], "test": order[:num_test]}
        if split not in parts:
            raise ValueError(f"no split {split!r}; there are train and test")
        return sorted(parts[split].tolist())

    def _read(self) -> list[Row]:
        if self._rows is None:
            rows = [self._cleaned(row) for row in _reader_of(self.table)(self.table)]
            if len(rows) < 2:
                raise ValueError(f"{self.table} has {len(rows)} rows; a training and a test part need 2 at least")
            self._check(rows)
            kept = self.columns or list(rows[0])
            self._rows = [{name: row[name] for name in kept} for row in rows]
        return self._rows

    def _cleaned(self, row: Mapping[str, Any]) -> Row:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            if (cleaned := re.sub(r"\W+", "_", str(name).strip())) in cells:
                raise ValueError(f"{self.table}: two columns are called {cleaned!r}, one of them {name!r}; rename it")
            cells[cleaned] = value
        texts = {name: None if value is None else str(value).strip() for name, value in cells.items()}
        return {name: None if text in self.empty else text for name, text in texts.items()}

    def _check(self, rows: Sequence[Row]) -> None:
        grouped = [column for columns in self.groups.values() for column in columns]
        for name in (*self.labels, *(self.columns or ()), *grouped):
            if name not in rows[0]:
                raise ValueError(f"{self.table} has no column {name!r}; it has {', '.join(rows[0])}")
        if mixed := sorted({*grouped} & {*self.labels}):
            raise ValueError(f"groups are of numbers, and {mixed[0]!r} is a label")
        for name in [name for name in self.columns or rows[0] if name not in self.labels]:
            for i, row in enumerate(rows):
                if row[name] is not None and not _is_number(str(row[name])):
                    raise ValueError(
                        f"{self.table}: {row[name]!r} in column {name!r}, row {i + 1}, is no number; name the column "
                        "among `labels` (--source.labels), leave it out of `columns`, or name the cell among `empty`"
                    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _reader_of(table: str) -> Callable[[str], Iterator[Mapping[str, Any]]]:
    if table.startswith(SKLEARN):
        return _from_sklearn
    readers = {".csv": _from_csv, ".parquet": _from_parquet}
    ending = Path(table).suffix.lower()
    if ending not in readers:
        raise ValueError(f"a table is a .csv or a .parquet file, or {SKLEARN}NAME, not {table!r}")
    if not Path(table).expanduser().is_file():
        raise ValueError(f"no such file: {table}")
    return readers[ending]


def _from_csv(table: str) -> Iterator[Mapping[str, Any]]:
    for _, row in read_table(Path(table).expanduser(), strict=True)[1]:
        yield row


def _from_parquet(table: str) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("Parquet files need pyarrow: pip install 'unidiff-core[data]'") from error
    yield from parquet.read_table(Path(table).expanduser()).to_pylist()


def _from_sklearn(table: str) -> Iterator[Mapping[str, Any]]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(f"{table} needs scikit-learn: pip install scikit-learn") from error
    name = table.removeprefix(SKLEARN)
    known = ("breast_cancer", "diabetes", "iris", "wine")
    if name not in known:
        raise ValueError(f"scikit-learn ships no table {name!r} that is read here; there are {', '.join(known)}")
    bunch = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    names = bunch.get("target_names")
    for numbers, target in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True):
        label = target if names is None else str(names[target])
        yield {**dict(zip(bunch.feature_names, numbers, strict=True)), TARGET: label}


def moments(source: TableSource) -> dict[str, dict[str, float]]:
    """Column of numbers → mean and standard deviation of its cells in `train`.

    Raises:
        ValueError: if all cells of a column are empty or the same.
    """
    rows = source.rows("train")
    result = {}
    for name in [name for name in rows[0] if name not in source.labels]:
        cells = np.array([float(str(row[name])) for row in rows if row[name] is not None])
        if len(cells) == 0 or cells.std() == 0:
            raise ValueError(f"the cells of {name!r} are empty or all the same; leave it out of `columns`")
        result[name] = {"mean": float(cells.mean()), "std": float(cells.std())}
    return result

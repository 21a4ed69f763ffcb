"""Text files as people and spreadsheets write them: UTF-8, and tables separated by commas."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",  # after that of UTF-32, which begins with it
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte-order mark → the encoding that it stands for."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What spreadsheets and databases write in place of commas."""


def decode(data: bytes) -> str:
    """UTF-8 → text; a byte-order mark goes.

    Raises:
        ValueError: if it is not UTF-8; says which encoding it is, where that shows, and how to convert it.
    """
    if form := _other_encoding(data):
        raise ValueError(f"not a text in UTF-8 but in {form}; convert it: iconv -f {form} -t UTF-8 OLD > NEW")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not a text in UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); if it is of an older Windows, "
            "convert it: iconv -f CP1252 -t UTF-8 OLD > NEW"
        ) from error


def _other_encoding(data: bytes) -> str | None:
    """The encoding that the first bytes name, or that every other byte shows, being 0; None for UTF-8 and unknown."""
    if form := next((form for mark, form in MARKS.items() if data.startswith(mark)), None):
        return form
    if data.count(0) * 4 < max(len(data), 1):
        return None
    return "UTF-16LE" if data[1::2].count(0) > data[::2].count(0) else "UTF-16BE"


def read_text(path: Path) -> str:
    """A file's text, its ends of lines as newlines.

    Raises:
        ValueError: as `decode`; names the file.
    """
    try:
        text = decode(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_table(path: Path, *, strict: bool = False) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The header of a CSV file, and the number of each row's last line with the row: column → cell.

    Args:
        path: of the file.
        strict: whether quotation marks must be where CSV has them.

    Raises:
        ValueError: if it is not separated by commas, names a column twice, or a row has more or fewer cells than the
            header; names the line.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=strict)
    with _naming_line(path, reader):
        fields = list(reader.fieldnames or ())
    _check_header(path, fields)
    return fields, _rows(path, reader, fields)


def _rows(path: Path, reader: csv.DictReader[str], fields: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    with _naming_line(path, reader):
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num} has not the {len(fields)} cells of the header, "
                    f"{', '.join(fields)}; quote what holds a comma"
                )
            yield reader.line_num, dict(row)


@contextmanager
def _naming_line(path: Path, reader: csv.DictReader[str]) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}") from error


def _check_header(path: Path, fields: list[str]) -> None:
    if len(fields) == 1:
        for separator, name in SEPARATORS.items():
            if separator in fields[0]:
                raise ValueError(f"{path} is separated by {name} ({fields[0]}), not by commas; save it with commas")
    if twice := sorted({field for field in fields if fields.count(field) > 1}):
        raise ValueError(f"{path} has the column {twice[0]!r} twice; rename one")

"""Stand-ins: files that lie where weights should: git-LFS pointers, web pages, half downloads."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

_LOOKED_AT = 512
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(rb"\s*(?:<\?xml|<!doctype|<html|<head|<body)", re.IGNORECASE)
_AGAIN = "download it again, and compare its size with that of the original"


def check_real(path: Path) -> None:
    """Check that a file is not one that merely lies in place of weights, a configuration or a tokenizer.

    Raises:
        ValueError: if it is a git-LFS pointer, a web page, empty or half a download; says how to get the real one.
        OSError: if it cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    checks: tuple[Callable[[Path, bytes], str], ...] = (_pointer, _page, _half)
    if what := next(filter(None, (check(path, start) for check in checks)), ""):
        kind = "text" if path.suffix in (".json", ".txt") else "tensors"
        raise ValueError(f"{path} is not a file of {kind}: it is {what}")


def _pointer(path: Path, start: bytes) -> str:
    if not start.startswith(_POINTER):
        return ""
    size = re.search(rb"^size (\d+)", start, re.MULTILINE)
    real = f" to a file of {int(size[1]):,} bytes" if size else ""
    return f"a git-LFS pointer{real}. Run `git lfs pull` in its clone, or download the file itself"


def _page(path: Path, start: bytes) -> str:
    if not _PAGE.match(start):
        return ""
    return (
        "a web page, as a link to a site gives it. Download the file itself; the hub has it under /resolve/, not /blob/"
    )


def _half(path: Path, start: bytes) -> str:
    size = path.stat().st_size
    if not size:
        return f"empty; {_AGAIN}"
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return f"half a download, {size:,} bytes without the end of their archive; {_AGAIN}"
    whole = _size_of_safetensors(path) if path.suffix == ".safetensors" else 0
    return f"half a download, {size:,} of {whole:,} bytes; {_AGAIN}" if size < whole else ""


def _size_of_safetensors(path: Path) -> int:
    """The size that a safetensors file says it has; 0 if it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:  # the format's own limit
            return 0
        header = file.read(length)
    if len(header) < length:
        return 8 + length if header.startswith(b"{") else 0
    try:
        rows = json.loads(header).values()
        return 8 + length + max((row["data_offsets"][1] for row in rows if "data_offsets" in row), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return 0


def torch_reason(error: Exception) -> str:
    """Why ``torch.load`` refused a file, in a line, without its advice to open it unsafely."""
    text = " ".join(str(error).split())
    if found := re.search(r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)", text):
        return f"it names {found[1]}, which is code"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return "it is damaged, or of another kind"
    return (text if " " in text else type(error).__name__)[:100]

"""Files and folders that appear whole or not at all, and replace what was there in one step."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream that becomes the file `path` if the block ends well, synced to disk; until then `path` is untouched.

    The partial file is named after host and process, so that two processes on one path do each other no harm.
    """
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8."""
    with replacing(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def open_to_all(folder: Path) -> None:
    """Readable for everyone: `tempfile` and safetensors leave what they make to its owner alone."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def publish(folder: Path, name: Path) -> None:
    """Give a complete folder its name, in place of one that had it. Both lie on the same disk."""
    old = name.with_name(f".{name.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if name.exists():
        name.rename(old)
    folder.rename(name)
    shutil.rmtree(old, ignore_errors=True)

"""Files and folders that appear whole or not at all, and replace what was there in one step."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream that becomes the file `path` if the block ends well; until then `path` is untouched. See `beside`."""
    with beside(path) as partial, partial.open("w+b") as stream:
        yield stream


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path` if the block ends well, synced to disk with its folder.

    The partial file lies in the same folder, so that a rename is one step, and is named after host and process, so that
    two processes on one path do each other no harm. What killed processes of this host left of `path` is removed.
    """
    sweep(path)
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say for which file
        raise
    finally:
        with suppress(OSError):  # a disk that fails says so above
            partial.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove what processes of this host that were killed left of a file that they did not finish."""
    for old in _left_behind(path):
        old.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's names: a power cut would leave a name without content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that sync no folders
            raise
    finally:
        os.close(descriptor)


def _left_behind(path: Path) -> Iterator[Path]:
    """Partial files of a path whose processes on this host are dead."""
    for name in path.parent.glob(f"{glob.escape(path.name)}.{glob.escape(socket.gethostname())}.*.partial"):
        number = name.name.split(".")[-2]
        if number.isdecimal() and not _is_alive(int(number)):
            yield name


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


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
    sync(name.parent)
    shutil.rmtree(old, ignore_errors=True)

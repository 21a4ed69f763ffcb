"""Where shards are: folders, patterns, URLs. The network is used when a URL asks for it, a shell when it is allowed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from unidiff_core.data.shard import MANIFEST, find_shards, promised

ENDINGS = (".tar", ".tar.gz", ".tgz")
PIPE = "pipe:"
UNFINISHED = ("source.json", "*.tar.json", "*.partial")
"""What `unidiffuser shards` and `encode` leave in a folder before its manifest."""


@dataclass(frozen=True)
class Shard:
    """A shard that can be opened, and what a manifest promises of it: its SHA-256, and the number of its samples."""

    url: str
    sha256: str | None = None
    count: int | None = None

    @property
    def name(self) -> str:
        """Its file name; empty if it comes from a command."""
        return "" if self.url.startswith(PIPE) else PurePosixPath(_path_of(self.url)).name

    def __str__(self) -> str:
        """Its URL without the query, which may hold a signature."""
        return self.url.partition("?")[0] if _is_url(self.url) else self.url


def list_shards(
    where: str | Path | Sequence[str], *, allow_pipe: bool = False, allow_absent: bool = False
) -> list[Shard]:
    """The shards that a folder, tar, pattern or URL stands for, or a list of them, in order.

    A folder: those of its manifest, or its ``*.tar`` if it has none and nothing of ours is half-written in it.
    ``data/{00..99}.tar``, ``data/*.tar``: patterns. ``s3://…``, ``https://…`` and whatever fsspec reads;
    ``simplecache::s3://…`` with a local copy. ``pipe:COMMAND`` if `allow_pipe`. Fetches listings and manifests only.
    With `allow_absent`, shards that a manifest lists need not be there: a policy for damage counts them as lost.

    Raises:
        ValueError: if there are none, or one is absent; says where was looked.
    """
    from braceexpand import braceexpand

    places = [where] if isinstance(where, (str, Path)) else where
    return [
        shard for place in places for url in braceexpand(str(place)) for shard in _listed(url, allow_pipe, allow_absent)
    ]


def _listed(url: str, allow_pipe: bool, allow_absent: bool) -> list[Shard]:
    if url.startswith(PIPE):
        _check_pipe(url, allow_pipe)
        return [Shard(url)]
    if not _is_url(url):
        url = str(Path(url).expanduser())
    if any(sign in url for sign in "*["):
        return _globbed(url)
    if _path_of(url).endswith(ENDINGS):
        if not _is_url(url) and not Path(url).is_file():
            raise ValueError(f"no such shard: {url}")
        return [Shard(url)]
    return _in_remote_folder(url) if _is_url(url) else _in_folder(Path(url), allow_absent)


def _in_folder(folder: Path, allow_absent: bool) -> list[Shard]:
    if (folder / MANIFEST).is_file():
        if not allow_absent:
            find_shards(folder)
        rows = promised((folder / MANIFEST).read_bytes())
        return [Shard(str(folder / name), *row) for name, row in rows.items()]
    if any(next(folder.glob(pattern), None) for pattern in UNFINISHED):
        raise ValueError(
            f"no shards in {folder} yet: `unidiffuser shards` or `encode` did not finish there; run it again"
        )
    found = sorted(path for path in folder.glob("*") if path.name.endswith(ENDINGS))
    if not found:
        raise ValueError(
            f"no shards in {folder}: neither a {MANIFEST} nor *.tar; `unidiffuser shards` writes raw ones, and "
            "`unidiffuser encode` latents"
        )
    return [Shard(str(path)) for path in found]


def _in_remote_folder(url: str) -> list[Shard]:
    filesystem, path = _filesystem(url)
    if filesystem.exists(f"{path}/{MANIFEST}"):
        rows = promised(filesystem.cat_file(f"{path}/{MANIFEST}"))
        return [Shard(f"{url.rstrip('/')}/{name}", *row) for name, row in rows.items()]
    return _globbed(f"{url.rstrip('/')}/*.tar")


def _globbed(url: str) -> list[Shard]:
    chain, separator, last = url.rpartition("::")
    filesystem, path = _filesystem(last)
    found = sorted(filesystem.glob(path))
    if not found:
        raise ValueError(f"no shards match {url}")
    if not _is_url(url):
        return [Shard(path) for path in found]
    return [Shard(chain + separator + filesystem.unstrip_protocol(path)) for path in found]


@contextmanager
def open_shard(url: str, *, allow_pipe: bool = False) -> Iterator[BinaryIO]:
    """A shard's bytes as a stream.

    Raises:
        ValueError: if it is a ``pipe:`` that is not allowed or fails, or of a protocol that cannot be read here.
        OSError: if it is not there.
    """
    if url.startswith(PIPE):
        _check_pipe(url, allow_pipe)
        with _piped(url.removeprefix(PIPE)) as stream:
            yield stream
    elif _is_url(url):
        filesystem, path = _filesystem(url)
        with filesystem.open(path, "rb") as stream:
            yield stream
    else:
        with Path(url).open("rb") as stream:
            yield stream


def notes_at(where: str | Path | Sequence[str], name: str) -> Iterator[Any]:
    """What the manifests beside the shards at `where` note under `name`; those on this machine that note it."""
    for folder in dict.fromkeys(Path(shard.url).parent for shard in list_shards(where) if not _is_url(shard.url)):
        manifest = folder / MANIFEST
        notes = json.loads(manifest.read_text()) if manifest.is_file() else {}
        if name in notes:
            yield notes[name]


def local_file(shard: Shard) -> Path | None:
    """The file that a shard is on this machine; None if it is none, or not there."""
    if shard.url.startswith("file://"):
        path = Path(_path_of(shard.url))
    elif _is_url(shard.url) or shard.url.startswith(PIPE):
        return None
    else:
        path = Path(shard.url)
    return path if path.is_file() else None


def fingerprint(
    where: str | Path | Sequence[str], *, allow_absent: bool = False, times: bool = True
) -> list[list[str | int | None]]:
    """What shows that shards came, went or changed, and is the same of a copy of the folder.

    Each one's name, its size, and the SHA-256 of its manifest, or else its time of change (ns).

    Args:
        where: the shards; see `list_shards`.
        allow_absent: those that are not there have no size.
        times: or no time of change, which copies on the disks of other machines do not share.
    """
    rows: list[list[str | int | None]] = []
    for shard in list_shards(where, allow_absent=allow_absent):
        size, time, _ = stamp(shard) or (None, None, None)
        rows.append([shard.name, size, shard.sha256 or (time if times else None)])
    return rows


def stamp(shard: Shard) -> list[int] | None:
    """What shows that a file was changed or replaced, if a shard is one here: its size, and two times in ns.

    A copy may keep the time of the content; its entry in the folder is new.
    """
    if (path := local_file(shard)) is None:
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def local_path(shard: Shard) -> Path:
    """Where a shard lies on this machine, for reading at random; a cached one is fetched whole first.

    Raises:
        ValueError: if it has no local copy.
    """
    if not _is_url(shard.url) and not shard.url.startswith(PIPE):
        return Path(shard.url)
    if shard.url.startswith(("filecache::", "simplecache::")):
        import fsspec  # type: ignore[import-untyped]

        return Path(fsspec.open_local(shard.url))
    if shard.url.startswith("file://"):
        return Path(_path_of(shard.url))
    raise ValueError(
        f"{shard} cannot be read at random where it is; give simplecache::{shard.url}, which keeps a copy here, or "
        "encode it to a local folder first"
    )


@contextmanager
def _piped(command: str) -> Iterator[BinaryIO]:
    # Allowed by name, see _check_pipe. A group of its own, so that what the shell started ends with it.
    process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        yield process.stdout  # type: ignore[misc]
        if process.wait():
            raise ValueError(f"the command {command!r} ended with exit code {process.returncode}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def _check_pipe(url: str, allow_pipe: bool) -> None:
    if not allow_pipe:
        raise ValueError(
            f"{url!r} would run a shell command; if you wrote it yourself, allow it: allow_pipe=True, or --allow_pipe"
        )


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url} needs a package that is not installed: {error}") from error


def _is_url(url: str) -> bool:
    return "://" in url or "::" in url


def _path_of(url: str) -> str:
    return urlsplit(url.rpartition("::")[2]).path if _is_url(url) else url

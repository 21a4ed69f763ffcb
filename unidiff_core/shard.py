"""Webdataset shards: written atomically beside a manifest, read securely."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"

Members = Mapping[str, Any]
"""One sample of a shard: member ending (``png``, ``txt``, ``json``) → bytes; ``__key__`` → its name."""


def secure_webdataset() -> Any:
    """Import webdataset with its code-executing features off.

    Without ``WDS_SECURE`` a ``.pyd`` member is unpickled and a ``pipe:`` URL runs a shell command.
    """
    os.environ.setdefault("WDS_SECURE", "1")
    import webdataset

    return webdataset


def write_shard(path: Path, samples: Iterable[Members]) -> int:
    """Write one tar of samples beside `path`, sync it, then rename it: a shard is whole or absent.

    Returns:
        The number of samples.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    count = 0
    try:
        with partial.open("wb") as stream:
            # Fixed ownership and times: the same samples give the same bytes.
            writer = secure_webdataset().TarWriter(stream, encoder=False, user="unidiff", group="unidiff", mtime=0)
            with writer:
                for sample in samples:
                    writer.write(dict(sample))
                    count += 1
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def write_shards(folder: Path, samples: Iterable[Members], *, shard_size: int = 1000) -> list[Path]:
    """Write samples as ``00000.tar``, ``00001.tar``, … of `shard_size` samples each, and their manifest."""
    paths: list[Path] = []
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, shard_size)):
        paths.append(folder / f"{len(paths):05d}.tar")
        write_shard(paths[-1], batch)
    write_manifest(folder, paths)
    return paths


def write_manifest(folder: Path, paths: Iterable[Path]) -> None:
    """Record names and SHA-256 of a folder's shards. Written last: a folder with a manifest is complete."""
    rows = [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths]
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps({"shards": rows}, indent=1) + "\n")
    partial.replace(folder / MANIFEST)


def find_shards(folder: str | Path) -> list[Path]:
    """The shards that a folder's manifest lists.

    Raises:
        ValueError: if the folder has no manifest, or lacks a shard that the manifest lists.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"no shards in {folder}: it has no {MANIFEST}. Write it with `unidiffuser shards` or `encode`")
    paths = [folder / row["name"] for row in json.loads(manifest.read_text())["shards"]]
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"{manifest} lists shards that are not there: {', '.join(absent)}")
    return paths


def read_shard(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of one shard, members undecoded, in order."""
    tars = secure_webdataset().tariterators
    with path.open("rb") as stream:
        for sample in tars.group_by_keys(tars.tar_file_expander([{"stream": stream, "url": str(path)}])):
            yield {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}


def read_shards(folder: str | Path) -> Iterator[dict[str, Any]]:
    """All samples of a folder of shards, members undecoded, in order."""
    for path in find_shards(folder):
        yield from read_shard(path)

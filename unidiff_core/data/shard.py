"""Webdataset shards: written atomically beside a manifest; read securely, and to the end or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import queue
import re
import tarfile
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from unidiff_core.foundation.argument import check_sizes
from unidiff_core.foundation.atomic import replacing, write_json
from unidiff_core.foundation.error import reason

MANIFEST = "manifest.json"
STORED = "safetensors"
"""The shard member that holds a sample's stored tensors."""

OWNER = "unidiff"
"""User and group of every member that is written here."""

Members = Mapping[str, Any]
"""One sample of a shard: member ending (``png``, ``txt``, ``json``) → bytes; ``__key__`` → its name."""

Endings = str | list[str]
"""A member's ending, or several of which a sample has one: ``[jpg, jpeg, png]``. Upper and lower case are the same."""

MAX_MEMBER = 2**28
"""Bytes of a member at most: what is longer is not read into memory."""
MOST = 100
"""Members of one kind that a sample may have at most."""
MAX_NOTE = 2**20
"""Bytes at most of what a tar says of a member beside its header: a long name, PAX fields."""

T = TypeVar("T")

_META = re.compile(r"__[^/]*__($|/)")  # webdataset's own notes in a shard, no samples


def secure_webdataset() -> Any:
    """Import webdataset with its code-executing features off.

    Without ``WDS_SECURE`` a ``.pyd`` member is unpickled and a ``pipe:`` URL runs a shell command.
    """
    os.environ.setdefault("WDS_SECURE", "1")
    import webdataset

    return webdataset


class Hashed:
    """A binary stream that hashes what passes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.sha256 = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read and hash."""
        data = self.stream.read(size)
        self.sha256.update(data)
        return data

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self.sha256.update(data)
        return self.stream.write(data)


class Patient:
    """A binary stream that is read in a thread of its own, and given up where nothing comes for too long.

    Args:
        stream: to read.
        seconds: to wait for each piece.
        name: of the shard, for errors.
    """

    def __init__(self, stream: BinaryIO, seconds: float, name: str) -> None:
        self.stream, self.seconds, self.name = stream, seconds, name
        self._wanted, self._pieces = queue.SimpleQueue[int](), queue.SimpleQueue[bytes | Exception]()
        threading.Thread(target=self._work, daemon=True).start()

    def read(self, size: int = -1) -> bytes:
        """As of the stream.

        Raises:
            TimeoutError: if nothing comes.
        """
        self._wanted.put(size)
        try:
            piece = self._pieces.get(timeout=self.seconds)
        except queue.Empty:
            raise TimeoutError(f"the shard {self.name}: no byte came within {self.seconds:g} s") from None
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        """End the thread, once it is not waiting for the stream."""
        self._wanted.put(0)

    def _work(self) -> None:
        while size := self._wanted.get():
            try:
                self._pieces.put(self.stream.read(size))
            except Exception as error:  # whatever a file system raises; it is raised to the reader
                self._pieces.put(error)


def ending_of(names: Collection[str], endings: Endings) -> str | None:
    """The first of `alternatives_of`; None if a sample has none."""
    return next(iter(alternatives_of(names, endings)), None)


def alternatives_of(names: Collection[str], endings: Endings) -> list[str]:
    """Which of a sample's members hold what may end so: one, several that are numbered, or none.

    Several captions of an image, say, are ``txt``, ``1.txt``, ``2.txt``, …; the first may be ``0.txt``, too.

    Args:
        names: endings of all of its members.
        endings: one, or several of which it has one.

    Raises:
        ValueError: if it has several endings, or more than `MOST` of one.
    """
    found = {ending: rows for ending in listed(endings) if (rows := numbered_in(names, ending))}
    if len(found) > 1:
        raise ValueError(f"it has {' and '.join(f'.{ending}' for ending in found)}, of which a sample may have one")
    rows = next(iter(found.values()), [])
    if len(rows) > MOST:
        raise ValueError(
            f"it has {len(rows)} members .{rows[0]} to .{rows[-1]}, more than {MOST} of one kind: they may be samples, "
            "each of which needs a name of its own before the first dot"
        )
    return rows


def numbered_in(names: Collection[str], ending: str) -> list[str]:
    """Of member names, an ending and the same with numbers before it, in their order."""
    tail = f".{ending}"
    numbers = sorted(
        int(number)
        for name in names
        if name.endswith(tail) and (number := name[: -len(tail)]).isdecimal() and number == str(int(number))
    )
    return [ending] * (ending in names) + [f"{number}{tail}" for number in numbers]


def numbered(ending: str, contents: Sequence[T]) -> dict[str, T]:
    """Members of a sample that hold several of one kind: ``txt``, ``1.txt``, …"""
    return {f"{i}.{ending}" if i else ending: content for i, content in enumerate(contents)}


def listed(endings: Endings) -> list[str]:
    """Each ending once, in lower case and without a dot before it, as members are read."""
    several = [endings] if isinstance(endings, str) else endings
    return list(dict.fromkeys(ending.removeprefix(".").lower() for ending in several))


def title_of(endings: Endings) -> str:
    """An ending, or several, for a person."""
    return " or ".join(f".{ending}" for ending in listed(endings))


# --- writing ---


@dataclass(frozen=True)
class Written:
    """A shard that was written."""

    name: str
    sha256: str
    count: int


def write_shard(path: Path, samples: Iterable[Members]) -> Written:
    """Write one tar of samples beside `path`, sync it, then rename it: a shard is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with replacing(path) as stream:
        hashed = Hashed(stream)
        # Fixed ownership and times: the same samples give the same bytes.
        writer = secure_webdataset().TarWriter(hashed, encoder=False, user=OWNER, group=OWNER, mtime=0)
        with writer:
            for sample in samples:
                writer.write(dict(sample))
                count += 1
    return Written(path.name, hashed.sha256.hexdigest(), count)


def write_shards(folder: Path, samples: Iterable[Members], *, shard_size: int = 1000) -> list[Path]:
    """Write samples as ``00000.tar``, ``00001.tar``, … of `shard_size` samples each, and their manifest."""
    check_sizes(shard_size=shard_size)
    written: list[Written] = []
    iterator = iter(samples)
    while batch := list(itertools.islice(iterator, shard_size)):
        written.append(write_shard(folder / f"{len(written):05d}.tar", batch))
    write_manifest(folder, written)
    return [folder / row.name for row in written]


def write_manifest(folder: Path, shards: Sequence[Written], **notes: Any) -> None:
    """Record names, SHA-256 and counts of a folder's shards, and `notes`. Written last: who has one is complete."""
    rows = [{"name": row.name, "sha256": row.sha256, "count": row.count} for row in shards]
    write_json(folder / MANIFEST, {"shards": rows, **notes})


# --- reading ---


def find_shards(folder: str | Path) -> list[Path]:
    """The shards that a folder's manifest lists.

    Raises:
        ValueError: if the folder has no manifest, or lacks a shard that the manifest lists.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"no shards in {folder}: it has no {MANIFEST}. Write it with `unidiffuser shards` or `encode`")
    paths = [folder / name for name in promised(manifest.read_bytes())]
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"{manifest} lists shards that are not there: {', '.join(absent)}")
    return paths


def promised(manifest: bytes) -> dict[str, tuple[str | None, int]]:
    """What a manifest promises: name of each shard → its SHA-256 and number of samples.

    Raises:
        ValueError: if it is none, or a name leads out of its folder.
    """
    try:
        rows = {row["name"]: (row["sha256"], row["count"]) for row in json.loads(manifest)["shards"]}
        is_sound = all(
            isinstance(name, str) and isinstance(sha256, str | None) and isinstance(count, int) and count >= 0
            for name, (sha256, count) in rows.items()
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"a {MANIFEST} that is none ({reason(error)}); write the shards again") from error
    if foreign := [name for name in rows if PurePosixPath(str(name)).name != name]:
        raise ValueError(f"a {MANIFEST} lists shards of its own folder, not {foreign[0]!r}")
    if not is_sound:
        raise ValueError(f"a {MANIFEST} lists of each shard a name, a SHA-256 and a number of samples; not so here")
    return rows


def endings_if_own(path: Path) -> set[str] | None:
    """Member endings of a shard's first sample, if this package wrote the shard; None if it cannot be shown to be ours.

    A shard of no samples has no endings, and nothing to lose.
    """
    endings: set[str] = set()
    first = None
    try:
        with path.open("rb") as stream:
            for key, ending, header, _ in walk(stream):
                if header.uname != OWNER:
                    return None
                if key != (first := first or key):
                    break
                endings.add(ending)
    except (OSError, tarfile.TarError, EOFError, zlib.error):
        return None
    return endings


_NOTES = (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class _WholeHeader(tarfile.TarInfo):
    """A member's header that is damaged or cut off is an error: tarfile itself takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _WholeHeader:
        try:
            return super().fromtarfile(archive)  # type: ignore[return-value]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # a block of zeros, the true end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.size > MAX_NOTE and self.type in _NOTES):
            raise tarfile.ReadError(f"a size of {self.size} bytes at byte {archive.offset}")
        return super()._proc_member(archive)  # type: ignore[misc]


@contextmanager
def naming_damage(name: str) -> Iterator[None]:
    """Turn what tarfile says of a damaged archive into a ValueError that names the shard."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"the shard {name} is damaged: {error}; fetch or write it again") from error


def split_name(name: str) -> tuple[str | None, str]:
    """The key and the ending of a member's name; no key and no ending if it has none."""
    key, ending = secure_webdataset().tariterators.base_plus_ext(name)
    return key, ending or ""


def walk(stream: Any, *, mode: str = "r|*") -> Iterator[tuple[str, str, tarfile.TarInfo, tarfile.TarFile]]:
    """The key, ending, header and archive of every member of a sample, in order, to the end of a tar's stream.

    Raises:
        tarfile.TarError: if the archive is damaged or cut off anywhere; see `naming_damage`.
    """
    with tarfile.open(fileobj=stream, mode=mode, tarinfo=_WholeHeader) as archive:  # type: ignore[call-overload]
        while (header := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            key, ending = split_name(header.name)
            if header.isreg() and key is not None and not _META.match(header.name):
                yield key, ending.lower(), header, archive
        while rest := archive.fileobj.read(2**20):  # type: ignore[union-attr]
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there is more after what says that it is the end")


class UnsortedError(ValueError):
    """The members of a sample do not lie together in a shard."""


class Halves:
    """Notices samples whose members do not lie together, which reading in order takes for samples that lack some."""

    def __init__(self, name: str) -> None:
        self.name, self._seen = name, dict[str, set[str]]()

    def add(self, key: str, endings: Iterable[str]) -> None:
        """A stretch of members of one key.

        Raises:
            UnsortedError: if an earlier stretch has others of the same key; names the sample, and how to sort.
            ValueError: if an earlier stretch has the same of the same key.
        """
        added = set(endings) - {"__key__"}
        earlier = self._seen.setdefault(key, added)
        if earlier is added:
            return
        if not earlier & added:
            both = f".{min(earlier)} and .{min(added)}"
            raise UnsortedError(
                f"the shard {self.name} is not sorted: {both} of sample {key} do not lie together. Sort it: "
                "mkdir tmp && tar -xf SHARD -C tmp && tar --sort=name -cf SHARD -C tmp ."
            )
        raise ValueError(f"sample {key} stands twice in {self.name}: give each a key of its own")


Lose = Callable[[str], None]
"""Takes note of a sample that cannot be used, and why."""


def grouped(
    members: Iterable[tuple[str, str, tarfile.TarInfo, tarfile.TarFile]],
    name: str,
    read: Callable[[tarfile.TarInfo, tarfile.TarFile], T],
    lose: Lose | None = None,
) -> Iterator[tuple[str, dict[str, T]]]:
    """The members of a shard by samples: the key, and ending → what is read of the member.

    Args:
        members: of a shard, as `walk` gives them.
        name: of the shard.
        read: what is wanted of each; a ValueError of it is the sample's.
        lose: told of each sample that has two members of one ending, or a key that was there before, or a member that
            cannot be read. If not given, that is an error.

    Raises:
        UnsortedError: if the members of a sample do not lie together.
        ValueError: as told to `lose`, and if the shard is damaged.
    """
    halves = Halves(name)
    for key, rows in itertools.groupby(members, lambda row: row[0]):
        sample: dict[str, T] = {}
        wrong = ""
        for _, ending, header, archive in rows:
            if ending in sample:
                wrong = f"sample {key} of {name} has two members .{ending}"
            try:
                sample[ending] = read(header, archive)
            except ValueError as error:
                wrong = f"sample {key} of {name}: member .{ending}: {error}"
        if key.startswith("/") or ".." in key.split("/"):
            wrong = f"sample {key!r} of {name} would lie outside of a folder that it is unpacked into"
        try:
            halves.add(key, sample)
        except UnsortedError:
            raise
        except ValueError as error:
            wrong = wrong or str(error)
        if not wrong:
            yield key, sample
        elif lose:
            lose(wrong)
        else:
            raise ValueError(wrong)


def check_size(header: tarfile.TarInfo) -> None:
    """Raises: ValueError if a member is too long to be read."""
    if header.size > MAX_MEMBER:
        raise ValueError(f"{header.size} bytes, and {MAX_MEMBER} are read at most")


def read_samples(stream: Any, name: str, lose: Lose | None = None) -> Iterator[dict[str, Any]]:
    """The samples of a shard's stream, members undecoded, in order.

    Args:
        stream: of the shard.
        name: of the shard, for errors.
        lose: told of each sample that is left out; see `grouped`.

    Raises:
        ValueError: if the shard is damaged or not sorted, or, without `lose`, a sample has two members of one ending,
            or stands twice; names the shard.
    """

    def content(header: tarfile.TarInfo, archive: tarfile.TarFile) -> bytes:
        check_size(header)
        return archive.extractfile(header).read()  # type: ignore[union-attr]

    with naming_damage(name):
        for key, sample in grouped(walk(stream), name, content, lose):
            yield {"__key__": key, **sample}


def check_sorted(rest: Iterator[Members], error: ValueError) -> None:
    """Read on after an error, to the end of a shard, for whether its cause is that the shard is not sorted.

    Raises:
        UnsortedError: if so.
    """
    try:
        for _ in rest:
            pass
    except UnsortedError as cause:
        raise cause from error
    except ValueError:
        return  # damaged further on: the first error is told

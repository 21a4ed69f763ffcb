"""An index of shards: where each sample's members lie, so that any sample is read from a memory map, and checked."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unidiff_core.data.damage import FAIL, Damage, ShardLostError, Tally
from unidiff_core.data.location import Shard, list_shards, local_path
from unidiff_core.data.salvage import Salvage
from unidiff_core.data.shard import (
    MANIFEST,
    STORED,
    Lose,
    UnsortedError,
    check_size,
    grouped,
    naming_damage,
    walk,
)
from unidiff_core.foundation.atomic import replacing

INDEX = "index.safetensors"
FORMAT = "1"
ABSENT = -1
HEADER = 512
"""Bytes of a member's header in a tar; it begins with the member's name, of 100 bytes."""


@dataclass
class ShardIndex:
    """Where the members of n samples lie in their shards.

    Attributes:
        shards: paths of plain tars.
        shard: int32 ``[n]``, number of the shard.
        starts: member ending → int64 ``[n]``, the byte where its content starts, `ABSENT` if a sample has none.
        lengths: member ending → int64 ``[n]``, bytes.
        layout: int32 ``[n]``, which of `headers` a sample's stored tensors have, `ABSENT` if nothing is stored.
        headers: the different safetensors headers, most data sets having one.
        sums: int64 ``[n]``, the CRC-32 of each sample's stored tensors, which is checked when they are read; None if
            nothing is.
    """

    shards: Sequence[Path]
    shard: Tensor
    starts: dict[str, Tensor]
    lengths: dict[str, Tensor]
    layout: Tensor
    headers: list[str]
    sums: Tensor | None = None
    _maps: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.shard)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which maps the shards itself."""
        return self.__dict__ | {"_maps": {}}

    @property
    def endings(self) -> Collection[str]:
        """Of all members that there are."""
        return self.starts.keys()

    def has(self, ending: str) -> Tensor:
        """Which samples have such a member, bool ``[n]``."""
        return self.starts[ending] != ABSENT if ending in self.starts else torch.zeros(len(self), dtype=torch.bool)

    def member(self, row: int, ending: str) -> bytes | None:
        """A member's content; None if the sample has no such member."""
        if ending not in self.starts:
            return None
        start, length = int(self.starts[ending][row]), int(self.lengths[ending][row])
        return None if start == ABSENT else self._map(int(self.shard[row]))[start : start + length].tobytes()

    def gather(self, rows: Tensor, ending: str, skip: int, width: int) -> Tensor:
        """`width` bytes of each row's member after the first `skip`: uint8 ``[b, width]``.

        Raises:
            ValueError: if a row's stored tensors are not what was indexed; names it.
        """
        if self.sums is not None and ending == STORED:
            for row in rows.tolist():
                self._check(row, int(self.sums[row]))
        gathered = np.empty((len(rows), width), dtype=np.uint8)
        starts = (self.starts[ending][rows] + skip).tolist()
        for own, shard, start in zip(gathered, self.shard[rows].tolist(), starts, strict=True):
            own[:] = self._map(shard)[start : start + width]
        return torch.from_numpy(gathered)

    def name(self, row: int) -> str:
        """A sample's name, for errors: its key and its shard."""
        shard = int(self.shard[row])
        start = max(int(starts[row]) for starts in self.starts.values())
        header = self._map(shard)[start - HEADER : start - HEADER + 100].tobytes()
        return f"sample {header.partition(b'.')[0].decode(errors='replace')} of {self.shards[shard]}"

    def _check(self, row: int, wanted: int) -> None:
        if (found := self._sum(row)) != wanted:
            raise ValueError(
                f"{self.name(row)} is damaged: the checksum of its .{STORED} is {found:08x}, not {wanted:08x}; bring "
                "the shard back from a copy or encode it again"
            )

    def _sum(self, row: int) -> int:
        start, length = int(self.starts[STORED][row]), int(self.lengths[STORED][row])
        return zlib.crc32(self._map(int(self.shard[row]))[start : start + length].data)

    def summed(self) -> ShardIndex:
        """The same with the checksums of what lies in the shards now: all stored tensors are read."""
        stored = self.has(STORED).tolist()
        return replace(self, sums=torch.tensor([self._sum(row) if has else 0 for row, has in enumerate(stored)]))

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            path = self.shards[shard]
            # Unlike mmap and numpy, this keeps no file open: a thousand shards are no trouble.
            mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
            self._maps[shard] = mapped.numpy()
        return self._maps[shard]


def open_index(
    where: str | Path | Sequence[str], *, check: bool = False, damage: Damage = FAIL, tally: Tally | None = None
) -> ShardIndex:
    """The index of the shards at `where`, on this machine; see `unidiff_core.data.location.list_shards`.

    That of a folder with a manifest is kept beside it, and made anew if a shard's size or time has changed.

    Args:
        where: the shards.
        check: compare the shards' hashes with their manifests when the index is made, and, of a single folder, keep a
            checksum of each sample's stored tensors, against which they are read.
        damage: what is done about shards and samples that cannot be read.
        tally: counts, as read, what is lost.

    Raises:
        ValueError: if there are no shards, or one is damaged, compressed, or not on this machine; names it.
    """
    tally = Tally() if tally is None else tally
    shards = list_shards(where, allow_absent=damage.policy != "fail")
    shards = [shard for shard in shards if _is_there(shard, damage, tally)]
    paths = [local_path(shard) for shard in shards]
    folder = Path(where).expanduser() if isinstance(where, (str, Path)) else None
    cache = folder / INDEX if folder and (folder / MANIFEST).is_file() else None
    fingerprint = _fingerprint(paths)
    index = _load(cache, paths, fingerprint) if cache else None
    if index is None or (cache and check and index.sums is None):
        index = build_index(shards, damage, tally, check=check)
        if cache and check:
            index = index.summed()
        if cache and not tally.lost:
            with suppress(OSError):  # a folder that may only be read
                _save(index, cache, fingerprint)
    if cache:
        _check_count(cache.with_name(MANIFEST), len(index) + tally.lost)
    return index if check else replace(index, sums=None)


def _is_there(shard: Shard, damage: Damage, tally: Tally) -> bool:
    """Whether a shard can be opened; one that is absent is counted."""
    if damage.policy == "fail" or local_path(shard).is_file():
        return True
    Salvage(shard, damage, tally).lose_rest(f"the shard {shard} is not there")
    return False


def _check_hash(path: Path, wanted: str | None) -> None:
    """Compare a shard with what its manifest says of it.

    Raises:
        ValueError: if it is another.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if wanted not in (None, found):
        raise ValueError(
            f"the shard {path} is damaged: its SHA-256 is {found}, not {wanted} as {path.parent / MANIFEST} says; "
            "bring it back from a copy or write it again"
        )


def _check_count(manifest: Path, found: int) -> None:
    """Compare the samples of a folder's shards with what its manifest counts."""
    promised = sum(row["count"] for row in json.loads(manifest.read_text())["shards"])
    if found != promised:
        raise ValueError(f"{manifest} counts {promised} samples, and its shards hold {found}; write them again")


def build_index(
    shards: Sequence[Shard], damage: Damage = FAIL, tally: Tally | None = None, *, check: bool = False
) -> ShardIndex:
    """Read the headers of all shards.

    Args:
        shards: on this machine.
        damage: what is done about shards and samples that cannot be read.
        tally: counts, as read, what is lost.
        check: compare each with its SHA-256.

    Raises:
        ValueError: if one is damaged, compressed, or names a member or a sample twice, or is not sorted; names it.
    """
    headers: dict[str, int] = {}
    tally = Tally() if tally is None else tally
    paths = [local_path(shard) for shard in shards]
    tables = [_salvaged(shard, headers, damage, tally, check) for shard in shards]
    counts = torch.tensor([len(layout) for layout, _ in tables])
    columns: dict[str, Tensor] = {}
    for ending in sorted({ending for _, table in tables for ending in table}):
        parts = [table.get(ending, _nowhere(len(layout))) for layout, table in tables]
        columns[ending] = torch.cat(parts)
    return ShardIndex(
        paths,
        torch.repeat_interleave(counts).int(),
        {ending: column[:, 0].contiguous() for ending, column in columns.items()},
        {ending: column[:, 1].contiguous() for ending, column in columns.items()},
        torch.cat([layout for layout, _ in tables]),
        list(headers),
    )


Rows = list[dict[str, tuple[int, int, str]]]
"""For each sample of a shard, ending → start and length of its member, and its safetensors header if it has one."""


def _salvaged(
    shard: Shard, headers: dict[str, int], damage: Damage, tally: Tally, check: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """`_columns_of` what can be read of a shard; the rest is counted."""
    path, rows, own = local_path(shard), Rows(), Tally()
    if damage.policy == "fail":
        _read(path, rows, None)
        if check:
            _check_hash(path, shard.sha256)
        return _columns_of(rows, headers)

    def lose(message: str) -> None:
        own.read += 1
        damage.lose(message, own)

    samples = Salvage(shard, damage, own)
    try:
        _read(path, rows, lose)
        if check:
            _check_hash(path, shard.sha256)
    except (ValueError, OSError, ShardLostError) as error:
        is_compared = check and shard.sha256 is not None
        keeps = damage.policy == "skip_sample" and not is_compared and not isinstance(error, UnsortedError)
        if not keeps:
            rows.clear()
            samples.tally = own = Tally()
        samples.lose_rest(str(error), len(rows) + own.lost)
    tally.add(own)
    return _columns_of(rows, headers)


def _read(path: Path, rows: Rows, lose: Lose | None) -> None:
    """Append the samples of a shard to `rows`, as far as they can be read."""
    if _is_compressed(path):
        raise ValueError(f"{path} cannot be read at random: it is compressed; unpack it to a plain .tar")
    with path.open("rb") as stream, naming_damage(str(path)):

        def read(header: tarfile.TarInfo, archive: tarfile.TarFile) -> tuple[int, int, str]:
            check_size(header)
            is_stored = header.name.lower().endswith(f".{STORED}")
            return header.offset_data, header.size, _header(stream, header) if is_stored else ""

        for _, sample in grouped(walk(stream, mode="r:"), str(path), read, lose):
            rows.append(sample)


def _columns_of(rows: Rows, headers: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Layouts ``[m]`` of a shard's m samples, and member ending → start and length ``[m, 2]``.

    New safetensors headers are added to `headers`.
    """
    layouts = [headers.setdefault(row[STORED][2], len(headers)) if STORED in row else ABSENT for row in rows]
    table = {
        ending: torch.tensor([row.get(ending, (ABSENT, 0))[:2] for row in rows])
        for ending in {ending for row in rows for ending in row}
    }
    return torch.tensor(layouts, dtype=torch.int32), table


def _is_compressed(path: Path) -> bool:
    """By its first bytes: a copy of what was at a URL has another name."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _nowhere(count: int) -> Tensor:
    """The column of an ending that no sample of a shard has."""
    return torch.tensor([ABSENT, 0]).repeat(count, 1)


def _header(stream: BinaryIO, member: tarfile.TarInfo) -> str:
    """The safetensors header of a member in a file, which is not moved."""
    size = int.from_bytes(os.pread(stream.fileno(), 8, member.offset_data), "little")
    try:
        if not 0 < size <= member.size - 8:
            raise ValueError("its header is longer than itself")
        return os.pread(stream.fileno(), size, member.offset_data + 8).decode("utf-8")
    except ValueError as error:
        raise ValueError(f"it is damaged, {error}; encode it again") from error


def _fingerprint(paths: Sequence[Path]) -> str:
    rows = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([FORMAT, rows]).encode()).hexdigest()


def _save(index: ShardIndex, path: Path, fingerprint: str) -> None:
    tensors = {"shard": index.shard, "layout": index.layout}
    tensors |= {f"starts.{ending}": value for ending, value in index.starts.items()}
    tensors |= {f"lengths.{ending}": value for ending, value in index.lengths.items()}
    tensors |= {} if index.sums is None else {"sums": index.sums}
    with replacing(path) as stream:
        stream.write(save(tensors, {"fingerprint": fingerprint, "headers": json.dumps(index.headers)}))


def _load(path: Path, shards: Sequence[Path], fingerprint: str) -> ShardIndex | None:
    """A saved index; None if there is none of these shards as they are now."""
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            if notes.get("fingerprint") != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — no mapping
        index = ShardIndex(
            shards,
            tensors["shard"],
            dict(_columns(tensors, "starts.")),
            dict(_columns(tensors, "lengths.")),
            tensors["layout"],
            json.loads(notes["headers"]),
            tensors.get("sums"),
        )
        return index if _is_sound(index) else None
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError, RecursionError):
        return None


def _is_sound(index: ShardIndex) -> bool:
    """Whether an index leads nowhere but into its shards: it came with them, perhaps from a stranger."""
    num = len(index)
    columns = [*index.starts.values(), *index.lengths.values(), index.layout]
    columns += [] if index.sums is None else [index.sums]
    if index.starts.keys() != index.lengths.keys() or any(column.shape != (num,) for column in columns):
        return False
    if not num:
        return True
    if not (int(index.shard.min()) >= 0 and int(index.shard.max()) < len(index.shards)):
        return False
    if not (int(index.layout.min()) >= ABSENT and int(index.layout.max()) < len(index.headers)):
        return False
    sizes = torch.tensor([path.stat().st_size for path in index.shards])[index.shard.long()]
    return all(
        bool(
            (
                ((start >= HEADER) & (length >= 0) & (length <= sizes) & (start <= sizes - length)) | (start == ABSENT)
            ).all()
        )
        for start, length in ((index.starts[ending], index.lengths[ending]) for ending in index.starts)
    )


def _columns(tensors: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), value

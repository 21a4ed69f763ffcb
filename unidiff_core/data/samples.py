"""Samples by `Place`: stored tensors, mapped or in memory, and raw members."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unidiff_core.batch import Batch
from unidiff_core.codec import Raw
from unidiff_core.encoding import RawReader
from unidiff_core.index import ABSENT, ShardIndex, open_index
from unidiff_core.order import Place
from unidiff_core.predictor import modality_of
from unidiff_core.shard import STORED, Members

IN_MEMORY = 2**30
"""Bytes of stored tensors up to which they are kept in memory, where indexing is a little faster than a memory map."""

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
"""As safetensors names them."""

Taken = tuple[dict[str, Tensor], dict[str, Tensor]]
"""``"<modality>.<name>" -> [b, ...]``, zeros where missing, and modality → bool ``[b]`` where it may be missing."""


class StoredTensors(Protocol):
    """Stored tensors of n samples."""

    @property
    def modalities(self) -> Set[str]:
        """The modalities of which any sample has tensors."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Taken:
        """Those of the samples `rows` ``[b]``."""
        ...

    def having(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → bool ``[b]``, for those that samples may lack."""
        ...


@dataclass(frozen=True)
class TensorsInMemory:
    """Stored tensors, stacked: ``"<modality>.<name>" -> [n, ...]``, and modality → bool ``[n]``."""

    stored: Mapping[str, Tensor]
    present: Mapping[str, Tensor]

    @property
    def modalities(self) -> Set[str]:
        """The modalities of which any sample has tensors."""
        return {modality_of(key) for key in self.stored}

    def __len__(self) -> int:
        return len(next(iter(self.stored.values())))

    def take(self, rows: Tensor) -> Taken:
        """By indexing."""
        return {key: value[rows] for key, value in self.stored.items()}, self.having(rows)

    def having(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → bool ``[b]``, for those that samples may lack."""
        return {name: value[rows] for name, value in self.present.items()}


def stack(samples: Sequence[Mapping[str, Tensor]]) -> TensorsInMemory:
    """Samples' tensors, each ``"<modality>.<name>"`` → tensor without a batch dimension, in memory."""
    kinds = {key: value for sample in samples for key, value in sample.items()}
    stored = {
        key: torch.stack([sample.get(key, torch.zeros_like(kind)) for sample in samples]) for key, kind in kinds.items()
    }
    present = {modality_of(key): torch.tensor([key in sample for sample in samples]) for key in kinds}
    return TensorsInMemory(stored, {name: mask for name, mask in present.items() if not mask.all()})


@dataclass(frozen=True)
class Field:
    """A tensor in a safetensors member: what it is, and the bytes of its data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorsOnDisk:
    """Stored tensors in shards, read from a memory map as they are asked for.

    Args:
        index: of the shards.

    Raises:
        ValueError: if a sample stores nothing, or one tensor differs in shape or dtype between samples.
    """

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        if not index.headers:
            raise ValueError("the shards hold no stored latents; make them with `unidiffuser encode`")
        if (index.layout == ABSENT).any():
            row = int((index.layout == ABSENT).nonzero()[0])
            raise ValueError(f"{index.name(row)} stores no latents, others do; encode it again")
        self.layouts = [self._layout(i, header) for i, header in enumerate(index.headers)]
        self.kinds = {key: field for layout in reversed(self.layouts) for key, field in layout.items()}
        names = [{modality_of(key) for key in layout} for layout in self.layouts]
        self.has = {name: torch.tensor([name in row for row in names]) for name in sorted(set().union(*names))}
        for i, layout in enumerate(self.layouts):
            self._check(i, layout)

    @property
    def modalities(self) -> Set[str]:
        """The modalities of which any sample has tensors."""
        return self.has.keys()

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> Taken:
        """By copying the bytes of each."""
        layout = self.index.layout[rows].long()
        present = self.having(rows)
        numbers = layout.unique().tolist()
        if len(numbers) == 1 and len(self.layouts[numbers[0]]) == len(self.kinds):
            return self._read(rows, numbers[0]), present
        stored = {key: torch.zeros(len(rows), *kind.shape, dtype=kind.dtype) for key, kind in self.kinds.items()}
        for number in numbers:
            at = (layout == number).nonzero()[:, 0]
            for key, value in self._read(rows[at], number).items():
                stored[key][at] = value
        return stored, present

    def having(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → bool ``[b]``, for those that samples may lack."""
        layout = self.index.layout[rows].long()
        return {name: has[layout] for name, has in self.has.items() if not has.all()}

    def _read(self, rows: Tensor, number: int) -> dict[str, Tensor]:
        layout = self.layouts[number]
        skip = 8 + len(self.index.headers[number].encode())
        content = self.index.gather(rows, STORED, skip, max(field.end for field in layout.values()))
        return {
            key: content[:, field.begin : field.end].contiguous().view(field.dtype).reshape(-1, *field.shape)
            for key, field in layout.items()
        }

    def _layout(self, number: int, header: str) -> dict[str, Field]:
        try:
            rows = {key: row for key, row in json.loads(header).items() if key != "__metadata__"}
            fields = {
                key: Field(DTYPES[row["dtype"]], tuple(row["shape"]), *row["data_offsets"]) for key, row in rows.items()
            }
            sizes = [
                math.prod(field.shape) * field.dtype.itemsize == field.end - field.begin for field in fields.values()
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._example(number)}: its .{STORED} is damaged; encode it again") from error
        length = int(self.index.lengths[STORED][self.index.layout == number].min())
        if not sizes or not all(sizes) or 8 + len(header.encode()) + max(f.end for f in fields.values()) > length:
            raise ValueError(f"{self._example(number)}: its .{STORED} is damaged; encode it again")
        return fields

    def _check(self, number: int, layout: Mapping[str, Field]) -> None:
        """Each tensor is the same everywhere, and a modality is there with all of its tensors or with none."""
        for key, kind in self.kinds.items():
            if key not in layout:
                if self.has[modality_of(key)][number]:
                    raise ValueError(f"{self._example(number)} has no {key}, but others of {modality_of(key)!r}")
            elif (kind.dtype, kind.shape) != ((field := layout[key]).dtype, field.shape):
                found, other = (f"{row.dtype} {list(row.shape)}" for row in (field, kind))
                raise ValueError(f"{self._example(number)} stores {key} as {found}, others as {other}")

    def _example(self, number: int) -> str:
        return self.index.name(int((self.index.layout == number).nonzero()[0]))


class StoredSamples(Dataset[Batch]):
    """Stored tensors as batches."""

    def __init__(self, tensors: StoredTensors) -> None:
        self.tensors = tensors

    @classmethod
    def at(cls, where: str | Path | Sequence[str], in_memory: bool | None = None) -> StoredSamples:
        """Those of encoded shards.

        Args:
            where: the shards; see `unidiff_core.store.list_shards`.
            in_memory: read them all at once; by their size (`IN_MEMORY`) if not given.

        Raises:
            ValueError: if there are none, or one is damaged; says where.
        """
        index = open_index(where)
        try:
            tensors = TensorsOnDisk(index)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if in_memory is None:
            in_memory = int(index.lengths[STORED].sum()) <= IN_MEMORY
        return cls(TensorsInMemory(*tensors.take(torch.arange(len(index)))) if in_memory else tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def everything(self) -> dict[str, Tensor]:
        """All stored tensors at once, ``"<modality>.<name>" -> [n, ...]``: for statistics of data that fits."""
        return self.tensors.take(torch.arange(len(self)))[0]

    def __getitem__(self, place: Place) -> Batch:
        stored, present = self.tensors.take(place.rows)
        stored = {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}
        size, counts = _counts(place, self.tensors.having)
        return Batch(place.index, place.step, stored, present=present, size=size, num_present=counts)


class Records(Protocol):
    """Raw members of n samples; a `ShardIndex` is one."""

    def __len__(self) -> int: ...

    def has(self, ending: str) -> Tensor:
        """Which samples have such a member, bool ``[n]``."""
        ...

    def member(self, row: int, ending: str) -> bytes | None:
        """A member's content."""
        ...

    def name(self, row: int) -> str:
        """A sample's name, for errors."""
        ...


@dataclass(frozen=True)
class RecordsInMemory:
    """Raw members in a list."""

    samples: Sequence[Members]

    def __len__(self) -> int:
        return len(self.samples)

    def has(self, ending: str) -> Tensor:
        """Which samples have such a member, bool ``[n]``."""
        return torch.tensor([ending in sample for sample in self.samples])

    def member(self, row: int, ending: str) -> bytes | None:
        """A member's content."""
        return self.samples[row].get(ending)

    def name(self, row: int) -> str:
        """A sample's name, for errors."""
        return f"sample {self.samples[row]['__key__']}"


class RawSamples(Dataset[Batch]):
    """Raw members as batches; a sample may lack modalities, but one that has none is left out.

    Args:
        records: of all samples.
        reader: of their modalities.

    Raises:
        ValueError: if no sample has a modality.
    """

    def __init__(self, records: Records, reader: RawReader) -> None:
        self.records, self.reader = records, reader
        self.has = {name: records.has(member) for name, member in reader.members.items()}
        if absent := [f".{reader.members[name]} for {name!r}" for name, mask in self.has.items() if not mask.any()]:
            raise ValueError(
                f"no sample has a member {' or '.join(absent)}; set `members` to the endings that they have"
            )
        self.rows = torch.stack(list(self.has.values())).any(0).nonzero()[:, 0]
        self.stand_ins: dict[str, Raw] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Place) -> Batch:
        rows = self.rows[place.rows].tolist()
        raws: dict[str, Sequence[Raw]] = {}
        present: dict[str, Tensor] = {}
        for name in self.reader.codecs:
            found = [self._raw(name, row) for row in rows]
            present[name] = torch.tensor([raw is not None for raw in found])
            raws[name] = [self._stand_in(name) if raw is None else raw for raw in found]
        size, counts = _counts(place, self.having)
        return Batch(place.index, place.step, raws=raws, present=present, size=size, num_present=counts)

    def having(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → bool ``[b]``, whether there is a member. What cleaning leaves nothing of is among them."""
        return {name: mask[self.rows[rows]] for name, mask in self.has.items()}

    def _raw(self, name: str, row: int) -> Raw | None:
        data = self.records.member(row, self.reader.members[name])
        try:
            return None if data is None else self.reader.read(name, data)
        except ValueError as error:
            raise ValueError(f"{self.records.name(row)}, {error}") from error

    def _stand_in(self, name: str) -> Raw:
        """A raw sample for a codec to encode where there is none; training sees nothing of it."""
        if name not in self.stand_ins:
            having = self.has[name].nonzero()[:, 0]
            raw = next((raw for row in having if (raw := self._raw(name, int(row))) is not None), None)
            if raw is None:
                raise ValueError(f"cleaning leaves nothing of any sample of {name!r}")
            self.stand_ins[name] = raw
        return self.stand_ins[name]


def _counts(place: Place, having: Callable[[Tensor], dict[str, Tensor]]) -> tuple[int, dict[str, int]]:
    """Samples in the global batch, and modality → how many of them have it."""
    batch = place.rows if place.batch is None else place.batch
    return len(batch), {name: int(mask.sum()) for name, mask in having(batch).items()}

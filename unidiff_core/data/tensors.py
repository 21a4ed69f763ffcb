"""Stored tensors of many samples: in memory, or read from a memory map as they are asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unidiff_core.data.index import ABSENT, ShardIndex
from unidiff_core.data.shard import STORED
from unidiff_core.foundation.latents import modality_of

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

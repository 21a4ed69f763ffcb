"""Stored tensors of many samples: in memory, or read from a memory map as they are asked for.

A sample may have several of a modality, of which one is drawn at each use: their tensors are ``"<modality>.<name>"``,
``"<modality>.<name>#1"``, ``#2`` and so on.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
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

MARK = "#"

Choices = Mapping[str, Tensor]
"""Modality → which of a sample's alternatives, int64 ``[b]``; the first where it is not named."""

Taken = tuple[dict[str, Tensor], dict[str, Tensor]]
"""``"<modality>.<name>" -> [b, ...]``, zeros where missing, and modality → bool ``[b]`` where it may be missing."""


NONE: Choices = {}


def alternative(key: str, number: int) -> str:
    """The stored name of an alternative of ``"<modality>.<name>"``, the first being 0."""
    return f"{key}{MARK}{number}" if number else key


class StoredTensors(Protocol):
    """Stored tensors of n samples."""

    @property
    def modalities(self) -> Set[str]:
        """The modalities of which any sample has tensors."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Tensor, choices: Choices = NONE) -> Taken:
        """Those of the samples `rows` ``[b]``."""
        ...

    def having(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → bool ``[b]``, for those that samples may lack."""
        ...

    def several(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → how many alternatives, int64 ``[b]``, for those of which any sample has several."""
        ...


@dataclass(frozen=True)
class TensorsInMemory:
    """Stored tensors, stacked.

    Attributes:
        stored: ``"<modality>.<name>" -> [n, ...]``, more where samples have several of a modality.
        present: modality → bool ``[n]``, for those that samples may lack.
        runs: modality → int64 ``[n, 2]``, the first of a sample's rows in `stored` and how many are its alternatives, 0
            if it lacks them (the row is then zeros); for those of which any sample has several.
    """

    stored: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    runs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def modalities(self) -> Set[str]:
        """The modalities of which any sample has tensors."""
        return {modality_of(key) for key in self.stored}

    def __len__(self) -> int:
        key, value = next(iter(self.stored.items()))
        return len(self.runs.get(modality_of(key), value))

    def take(self, rows: Tensor, choices: Choices = NONE) -> Taken:
        """By indexing."""
        at = {name: runs[rows, 0] + choices.get(name, 0) for name, runs in self.runs.items()}
        stored = {key: value[at.get(modality_of(key), rows)] for key, value in self.stored.items()}
        return stored, self.having(rows)

    def having(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → bool ``[b]``, for those that samples may lack."""
        return {name: value[rows] for name, value in self.present.items()}

    def several(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → how many alternatives, int64 ``[b]``, for those of which any sample has several."""
        return {name: runs[rows, 1] for name, runs in self.runs.items()}


def stack(samples: Sequence[Mapping[str, Tensor]]) -> TensorsInMemory:
    """Samples' tensors, each ``"<modality>.<name>"`` → tensor without a batch dimension, in memory."""
    kinds = {key: value for sample in samples for key, value in sample.items() if MARK not in key}
    counts = {
        modality_of(key): torch.tensor(
            [next(i for i in itertools.count() if alternative(key, i) not in sample) for sample in samples]
        )
        for key in kinds
    }
    stored = {
        key: torch.stack(
            [
                sample.get(alternative(key, i), torch.zeros_like(kind))
                for sample, count in zip(samples, counts[modality_of(key)].tolist(), strict=True)
                for i in range(max(1, count))
            ]
        )
        for key, kind in kinds.items()
    }
    present = {name: count > 0 for name, count in counts.items() if (count == 0).any()}
    return TensorsInMemory(stored, present, {name: _runs(count) for name, count in counts.items() if (count > 1).any()})


def _runs(counts: Tensor) -> Tensor:
    """Where each sample's alternatives begin, one behind the other, and how many they are: ``[n, 2]``."""
    rows = counts.clamp(min=1)
    return torch.stack([rows.cumsum(0) - rows, counts], dim=1)


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
        fields = [row for layout in reversed(self.layouts) for row in layout.items()]
        self.kinds = {key: field for key, field in fields if MARK not in key}
        names = sorted({modality_of(key) for key, _ in fields})
        self.counts = {name: torch.tensor([_count(layout, name) for layout in self.layouts]) for name in names}
        self.has = {name: count > 0 for name, count in self.counts.items()}
        for i, layout in enumerate(self.layouts):
            self._check(i, layout)

    @property
    def modalities(self) -> Set[str]:
        """The modalities of which any sample has tensors."""
        return self.has.keys()

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor, choices: Choices = NONE) -> Taken:
        """By copying the bytes of each."""
        layout = self.index.layout[rows].long()
        present = self.having(rows)
        numbers = layout.unique().tolist()
        if len(numbers) == 1 and all(has[numbers[0]] for has in self.has.values()):
            return self._read(rows, numbers[0], choices), present
        stored = {key: torch.zeros(len(rows), *kind.shape, dtype=kind.dtype) for key, kind in self.kinds.items()}
        for number in numbers:
            at = (layout == number).nonzero()[:, 0]
            own = {name: choice[at] for name, choice in choices.items()}
            for key, value in self._read(rows[at], number, own).items():
                stored[key][at] = value
        return stored, present

    def in_memory(self) -> TensorsInMemory:
        """All of them."""
        rows = torch.arange(len(self))
        stored, present = self.take(rows)
        runs = {name: _runs(counts) for name, counts in self.several(rows).items()}
        for name, (start, count) in ((name, run.unbind(1)) for name, run in runs.items()):
            keys = [key for key in stored if modality_of(key) == name]
            total = int(count.clamp(min=1).sum())
            whole = {key: stored[key].new_zeros(total, *stored[key].shape[1:]) for key in keys}
            for number in range(int(count.max())):
                having = (count > number).nonzero()[:, 0]
                part = self.take(having, {name: torch.full_like(having, number)})[0]
                for key in keys:
                    whole[key][start[having] + number] = part[key]
            stored |= whole
        return TensorsInMemory(stored, present, runs)

    def having(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → bool ``[b]``, for those that samples may lack."""
        layout = self.index.layout[rows].long()
        return {name: has[layout] for name, has in self.has.items() if not has.all()}

    def several(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → how many alternatives, int64 ``[b]``, for those of which any sample has several."""
        layout = self.index.layout[rows].long()
        return {name: counts[layout] for name, counts in self.counts.items() if (counts > 1).any()}

    def _read(self, rows: Tensor, number: int, choices: Choices) -> dict[str, Tensor]:
        layout = self.layouts[number]
        skip = 8 + len(self.index.headers[number].encode())
        content = self.index.gather(rows, STORED, skip, max(field.end for field in layout.values()))
        read = {}
        for key, own in ((key, own) for key, own in layout.items() if MARK not in key):
            piece = content[:, own.begin : own.end].contiguous()
            choice = choices.get(modality_of(key), torch.zeros(0))
            for other in choice[choice > 0].unique().tolist():
                chosen, at = choice == other, layout[alternative(key, other)]
                piece[chosen] = content[chosen, at.begin : at.end]
            read[key] = piece.view(own.dtype).reshape(-1, *own.shape)
        return read

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
        numbers = [key.partition(MARK)[2] for key in fields if MARK in key]
        if not all(number.isdecimal() for number in numbers):
            raise ValueError(f"{self._example(number)}: its .{STORED} is damaged; encode it again")
        if not sizes or not all(sizes) or 8 + len(header.encode()) + max(f.end for f in fields.values()) > length:
            raise ValueError(f"{self._example(number)}: its .{STORED} is damaged; encode it again")
        return fields

    def _check(self, number: int, layout: Mapping[str, Field]) -> None:
        """Each tensor is the same everywhere, and a modality is there with all of its tensors or with none."""
        for base, kind in self.kinds.items():
            for key in (alternative(base, i) for i in range(int(self.counts[modality_of(base)][number]))):
                if key not in layout:
                    raise ValueError(f"{self._example(number)} has no {key}, but others of {modality_of(key)!r}")
                if (kind.dtype, kind.shape) != ((field := layout[key]).dtype, field.shape):
                    found, other = (f"{row.dtype} {list(row.shape)}" for row in (field, kind))
                    raise ValueError(f"{self._example(number)} stores {key} as {found}, others as {other}")

    def _example(self, number: int) -> str:
        return self.index.name(int((self.index.layout == number).nonzero()[0]))


def _count(layout: Mapping[str, Field], name: str) -> int:
    """How many alternatives of a modality there are."""
    numbers = [int(key.partition(MARK)[2] or 0) for key in layout if modality_of(key) == name]
    return max(numbers, default=-1) + 1

"""What kind of samples a training reads: stored latents, raw shards, or a source; as batches by `Place`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from unidiff_core.codec.codec import Codec, EmptyRaw, Raw
from unidiff_core.data.cleaner import Cleaner
from unidiff_core.data.damage import FAIL, Damage, Tally
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.index import ShardIndex, open_index
from unidiff_core.data.location import fingerprint, notes_at
from unidiff_core.data.order import Place
from unidiff_core.data.shard import MOST, STORED, Endings, Members, alternatives_of, numbered_in, title_of
from unidiff_core.data.source import Source
from unidiff_core.data.tensors import IN_MEMORY, StoredTensors, TensorsOnDisk, stack
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.progress import tracked
from unidiff_core.serialization.description import describe_codecs

Where = str | list[str]


class Samples(ABC):
    """A kind of samples. Its constructor's parameters are its options; where they are is the data module's."""

    validation_batch_size: ClassVar[int] = 256
    """Samples of one process at a time in validation, where the module does not say."""

    @abstractmethod
    def open(self, where: Where, codecs: Mapping[str, Codec], device: torch.device) -> Dataset[Batch] | None:
        """The samples of one part, indexed by `Place`; None if there is no such part.

        Args:
            where: shards (a folder, a pattern, a URL, a list of them), or whatever else names a part.
            codecs: modality → codec, of the model that is trained; none if that is no `UniDiffuser`.
            device: of this process.

        Raises:
            ValueError: if there are none, or they do not fit the codecs; says where.
        """

    def version(self, where: Where) -> Any:
        """What shows that processes see other samples, plain data to compare; None if they cannot."""
        return None


class StoredSamples(Samples):
    """Latents that `unidiffuser encode` stored. A sample may lack modalities.

    Args:
        in_memory: read everything at the start, or each sample from a memory map when its turn comes; by size if not
            given.
        check: compare each sample that is read with its checksum; of folders with a manifest.
    """

    def __init__(self, in_memory: bool | None = None, check: bool = True) -> None:
        self.in_memory, self.check = in_memory, check

    def open(self, where: Where, codecs: Mapping[str, Codec], device: torch.device) -> StoredDataset:
        """Those of encoded shards; what is named twice is shown twice as often."""
        samples = StoredDataset.at(where, self.in_memory, check=self.check)
        rank_zero_only(print)(f"{_place(where)}: {samples.summary}")
        _warn_of_other_codecs(where, codecs)
        if absent := sorted(codecs.keys() - samples.tensors.modalities):
            known = ", ".join(sorted(samples.tensors.modalities))
            raise ValueError(
                f"no sample in {where} has latents of {', '.join(absent)}, only of {known}; encode them too"
            )
        return samples

    def version(self, where: Where) -> Any:
        """Of the shards."""
        return fingerprint(where, times=False)


class RawSamples(Samples):
    """Raw shards, decoded and encoded as training goes, by the codecs of the model. A sample may lack modalities.

    Slower than `StoredSamples` by what the frozen networks cost, and the same run but for rounding.

    Args:
        members: modality → member ending, or several of which a sample has one, where that is not the codec's.
        clean: modality → cleaner of its raw samples; what it leaves nothing of is missing.
        damage: what is done about shards and samples that cannot be read. A sample of which that is found when its turn
            comes is left out alone, and counted once.
        check: compare the shards with the SHA-256 of their manifests when they are opened; of a single folder once.
    """

    validation_batch_size = 64

    def __init__(
        self,
        members: dict[str, Endings] | None = None,
        clean: dict[str, Cleaner] | None = None,
        damage: Damage = FAIL,
        check: bool = True,
    ) -> None:
        self.members, self.clean, self.damage, self.check = members, clean, damage, check

    def open(self, where: Where, codecs: Mapping[str, Codec], device: torch.device) -> RawDataset:
        """Those of raw shards on this machine."""
        reader = _reader(codecs, self.members, self.clean)
        tally = Tally()
        index = open_index(where, check=self.check, damage=self.damage, tally=tally)
        self.damage.check(tally, len(index) + tally.lost)
        samples = RawDataset(index, reader, self.damage, tally)
        rank_zero_only(print)(f"{_place(where)}: {samples.summary}")
        if tally.errors:
            rank_zero_warn(f"{_place(where)}: {tally.loss}", category=UserWarning)
        return samples

    def version(self, where: Where) -> Any:
        """Of the shards."""
        return fingerprint(where, allow_absent=self.damage.policy != "fail", times=False)


class SourceSamples(Samples):
    """A source straight into training: its samples are encoded at the start and kept in memory.

    For data that fits there; every process encodes all of it. Larger sets go through `unidiffuser shards` and `encode`.
    `train` and `validation` name its splits.

    Args:
        source: of raw samples.
        members: modality → member ending, or several of which a sample has one, where that is not the codec's.
        clean: modality → cleaner of its raw samples.
        missing: whether a sample may lack a modality; what cleaning leaves nothing of is dropped, or missing.
        cache: keep what is encoded; otherwise the raw members, encoded anew whenever their turn comes.
    """

    validation_batch_size = 64

    def __init__(
        self,
        source: Source,
        members: dict[str, Endings] | None = None,
        clean: dict[str, Cleaner] | None = None,
        missing: Literal["error", "keep"] = "error",
        cache: bool = True,
    ) -> None:
        self.source, self.members, self.clean, self.missing, self.cache = source, members, clean, missing, cache
        self._encoded: dict[str, StoredDataset] = {}

    def open(self, where: Where, codecs: Mapping[str, Codec], device: torch.device) -> Dataset[Batch] | None:
        """Those of a split, encoded once; None for a split `validation` that there is not."""
        splits = self.source.splits
        if where == "validation" and where not in splits:
            return None
        if not isinstance(where, str) or where not in splits:
            raise ValueError(f"the source has no split {where!r}; there are {', '.join(splits)}")
        reader = _reader(codecs, self.members, self.clean)
        if not self.cache:
            return self._uncached(where, reader)
        if where not in self._encoded:
            self._encoded[where] = self._encode(where, reader, device)
        return self._encoded[where]

    def _uncached(self, split: str, reader: RawReader) -> RawDataset:
        records = RecordsInMemory(list(self.source.samples(split)))
        samples = RawDataset(records, reader)
        for name, mask in samples.has.items():
            lacking = (~mask).nonzero()[:, 0].tolist()
            if lacking and self.missing == "error":
                raise ValueError(
                    f"{records.name(lacking[0])} has no member {title_of(reader.members[name])} for {name!r}; may it? "
                    "missing: keep"
                )
        rank_zero_only(print)(f"{split}: {samples.summary}")
        return samples

    def _encode(self, split: str, reader: RawReader, device: torch.device) -> StoredDataset:
        for codec in reader.codecs.values():
            codec.to(device)
        encoder = SampleEncoder(reader, missing=self.missing)
        samples = tracked(self.source.samples(split), f"encode {split}", self.source.splits[split])
        tally = Tally()
        tensors = [stored for _, stored in encoder.tensors(samples, f"split {split}", tally)]
        if tally.dropped:
            rank_zero_only(print)(f"{split}: {tally}")
        if not tensors:
            raise ValueError(f"nothing is left of the split {split!r} of the source: {tally}")
        return StoredDataset(stack(tensors))


class StoredDataset(Dataset[Batch]):
    """Stored tensors as batches.

    Args:
        tensors: of all samples.
        index: of the shards that they were read from, for their names.
    """

    def __init__(self, tensors: StoredTensors, index: ShardIndex | None = None) -> None:
        self.tensors, self.index = tensors, index

    @classmethod
    def at(
        cls, where: str | Path | Sequence[str], in_memory: bool | None = None, *, check: bool = True
    ) -> StoredDataset:
        """Those of encoded shards.

        Args:
            where: the shards; see `unidiff_core.data.location.list_shards`.
            in_memory: read them all at once; by their size (`IN_MEMORY`) if not given.
            check: compare each sample that is read with its checksum; see `open_index`.

        Raises:
            ValueError: if there are none, or one is damaged; says where.
        """
        index = open_index(where, check=check)
        try:
            tensors = TensorsOnDisk(index)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if in_memory is None:
            in_memory = int(index.lengths[STORED].sum()) <= IN_MEMORY
        return cls(tensors.in_memory() if in_memory else tensors, index)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def summary(self) -> str:
        """How many samples there are, and how many of them lack each modality, or have several of it."""
        rows = torch.arange(len(self))
        return _summary(len(self), self.tensors.having(rows), self.tensors.several(rows))

    def name(self, row: int) -> str:
        """A sample's name, for messages."""
        return self.index.name(row) if self.index else f"sample {row}"

    def everything(self) -> dict[str, Tensor]:
        """All stored tensors at once, ``"<modality>.<name>" -> [n, ...]``: for statistics of data that fits."""
        return self.tensors.take(torch.arange(len(self)))[0]

    def __getitem__(self, place: Place) -> Batch:
        stored, present = self.tensors.take(place.rows, place.choose(self.tensors.several(place.rows)))
        stored = {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}
        size, counts = _counts(place, self.tensors.having)
        return Batch(place.index, place.step, stored, present=present, size=size, num_present=counts)


class Records(Protocol):
    """Raw members of n samples; a `ShardIndex` is one."""

    def __len__(self) -> int: ...

    @property
    def endings(self) -> Collection[str]:
        """Of all members that there are."""
        ...

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

    @cached_property
    def endings(self) -> Collection[str]:
        """Of all members that there are."""
        return {ending for sample in self.samples for ending in sample}

    def has(self, ending: str) -> Tensor:
        """Which samples have such a member, bool ``[n]``."""
        return torch.tensor([ending in sample for sample in self.samples])

    def member(self, row: int, ending: str) -> bytes | None:
        """A member's content."""
        return self.samples[row].get(ending)

    def name(self, row: int) -> str:
        """A sample's name, for errors."""
        return f"sample {self.samples[row]['__key__']}"


class RawDataset(Dataset[Batch]):
    """Raw members as batches; a sample may lack modalities, but one that has none is left out.

    Of several members of one modality (``txt``, ``1.txt``, …) one is drawn at each use, as of stored ones.

    Args:
        records: of all samples.
        reader: of their modalities.
        damage: what is done about samples that cannot be read.
        tally: of what was lost before; `note` goes on counting.

    Raises:
        ValueError: if no sample has a modality.
    """

    def __init__(self, records: Records, reader: RawReader, damage: Damage = FAIL, tally: Tally | None = None) -> None:
        self.records, self.reader, self.damage = records, reader, damage
        self.tally = Tally() if tally is None else tally
        self.total = len(records) + self.tally.lost
        self.lost = set[int]()
        self.new = dict[int, str]()
        found = {name: self._counts(endings) for name, endings in reader.members.items()}
        self.has = {name: count > 0 for name, count in found.items()}
        self.num = {name: count for name, count in found.items() if (count > 1).any()}
        if absent := [
            f"{title_of(reader.members[name])} for {name!r}" for name, mask in self.has.items() if not mask.any()
        ]:
            raise ValueError(
                f"no sample has a member {' or '.join(absent)}; set `members` to the endings that they have"
            )
        self.rows = torch.stack(list(self.has.values())).any(0).nonzero()[:, 0]
        self.stand_ins: dict[str, Raw] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def _counts(self, endings: list[str]) -> Tensor:
        """How many members of one of these endings each sample has, int64 ``[n]``.

        Raises:
            ValueError: if one has several of the endings, or too many members; names it.
        """
        nothing = torch.zeros(len(self.records), dtype=torch.int64)
        names = [numbered_in(self.records.endings, ending) for ending in endings]
        counts = torch.stack([sum((self.records.has(name).long() for name in row), nothing) for row in names])
        if len(twice := ((counts > 0).sum(0) > 1).nonzero()):
            raise ValueError(f"{self.records.name(int(twice[0]))} has several of {title_of(endings)}; it may have one")
        for row in (counts.amax(0) > MOST).nonzero()[:1, 0].tolist():
            self._members(row, endings)
        return counts.sum(0)

    @property
    def summary(self) -> str:
        """How many samples there are, how many of them lack or have several of each modality, how many are left out."""
        left_out = len(self.records) - len(self)
        several = {name: count[self.rows] for name, count in self.num.items()}
        text = _summary(len(self), self.having(torch.arange(len(self))), several)
        return text + f"; left out: {left_out} that have none of {', '.join(self.has)}" * bool(left_out)

    def __getitem__(self, place: Place) -> Batch:
        rows, at = self.rows[place.rows].tolist(), place.rows.tolist()
        lost: dict[int, str] = {}
        raws: dict[str, Sequence[Raw]] = {}
        present: dict[str, Tensor] = {}
        for name in self.reader.codecs:
            found = [
                [] if number in lost else self._raws_or_lost(name, row, lost, number)
                for number, row in zip(at, rows, strict=True)
            ]
            counts = torch.tensor([len(several) for several in found])
            present[name] = counts > 0
            chosen = (place.choose({name: counts})[name] if name in self.num else torch.zeros_like(counts)).tolist()
            raws[name] = [
                several[i] if several else self._stand_in(name) for several, i in zip(found, chosen, strict=True)
            ]
        for i, number in enumerate(at):
            if number in lost:
                for mask in present.values():
                    mask[i] = False
        size, having = _counts(place, self.having)
        return Batch(place.index, place.step, raws=raws, present=present, size=size, num_present=having, lost=lost)

    def note(self, lost: Mapping[int, str]) -> list[str]:
        """Count the samples of a batch that could not be read, each once.

        Returns:
            What is wrong with those that were not counted before; `new` keeps it, by row, until somebody empties it.
        """
        new = {row: why for row, why in lost.items() if row not in self.lost}
        self.lost |= new.keys()
        self.new |= new
        for why in new.values():
            self.tally.lose(why)
        return list(new.values())

    def check(self) -> None:
        """Stop if too many were lost.

        Raises:
            LossError: if more is lost than may be.
        """
        self.damage.check(self.tally, self.total)

    def name(self, row: int) -> str:
        """A sample's name, for messages."""
        return self.records.name(int(self.rows[row]))

    def having(self, rows: Tensor) -> dict[str, Tensor]:
        """Modality → bool ``[b]``, whether there is a member, though empty or cleaned to nothing."""
        return {name: mask[self.rows[rows]] for name, mask in self.has.items()}

    def _raws_or_lost(self, name: str, row: int, lost: dict[int, str], number: int) -> list[Raw]:
        """`_raws`; of a sample that may be lost, what is wrong goes into `lost` under its number."""
        try:
            return self._raws(name, row)
        except ValueError as error:
            if self.damage.policy == "fail":
                raise
            lost[number] = str(error)
            return []

    def _raws(self, name: str, row: int) -> list[Raw]:
        """All that a sample has of a modality: none, one, or several."""
        try:
            return self.reader.read_all(name, self._members(row, self.reader.members[name]))
        except EmptyRaw:
            return []
        except ValueError as error:
            raise ValueError(f"{self.records.name(row)}, {error}") from error

    def _members(self, row: int, endings: list[str]) -> dict[str, bytes]:
        names = [name for ending in endings for name in numbered_in(self.records.endings, ending)]
        members = {name: data for name in names if (data := self.records.member(row, name)) is not None}
        try:
            return {name: members[name] for name in alternatives_of(members, endings)}
        except ValueError as error:
            raise ValueError(f"{self.records.name(row)}: {error}") from error

    def _stand_in(self, name: str) -> Raw:
        """A raw sample for a codec to encode where there is none; training sees nothing of it."""
        if name not in self.stand_ins:
            having = self.has[name].nonzero()[:, 0]
            found = next((raws for row in having if (raws := self._raws_or_lost(name, int(row), {}, 0))), None)
            if found is None:
                raise ValueError(f"cleaning leaves nothing of any sample of {name!r}, or every member is empty")
            self.stand_ins[name] = found[0]
        return self.stand_ins[name]


def _reader(
    codecs: Mapping[str, Codec], members: Mapping[str, Endings] | None, clean: Mapping[str, Cleaner] | None
) -> RawReader:
    """What reads raw samples for a model's codecs.

    Raises:
        ValueError: if there is no model with codecs.
    """
    if not codecs:
        raise ValueError(
            "raw samples are encoded by the codecs of the model, and there are none; give the data module to a trainer "
            "of a `UniDiffuser`"
        )
    return RawReader(codecs, members, clean)


def _place(where: Where) -> str:
    return where if isinstance(where, str) else ", ".join(where)


def _summary(num: int, having: Mapping[str, Tensor], several: Mapping[str, Tensor]) -> str:
    lacking = {name: int((~mask).sum()) for name, mask in having.items()}
    parts = [f"{num} samples", *(f"{count} without {name}" for name, count in lacking.items() if count)]
    for name, count in several.items():
        if num_several := int((count > 1).sum()):
            parts.append(f"{num_several} with several {name} (of {int(count.sum())} in all one is drawn at each use)")
    return ", ".join(parts)


def _counts(place: Place, having: Callable[[Tensor], dict[str, Tensor]]) -> tuple[int, dict[str, int]]:
    """Samples in the global batch, and modality → how many of them have it."""
    batch = place.rows if place.batch is None else place.batch
    return len(batch), {name: int(mask.sum()) for name, mask in having(batch).items()}


def _settled(described: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
    """A described codec, but for how it decodes, with one spelling of each path.

    A model directory says ``runs/model/../weights``.
    """
    return {
        key: _spelt(value) if key in codec.weights and isinstance(value, str) else value
        for key, value in described.items()
        if key not in codec.decoding
    }


def _spelt(path: str) -> str:
    found = Path(path).expanduser()
    return os.path.relpath(found.resolve()) if found.exists() else os.path.normpath(path)


def _warn_of_other_codecs(where: str | list[str], codecs: Mapping[str, Codec]) -> None:
    """Latents that another codec encoded are decoded to something else; some arguments change nothing of them."""
    present = describe_codecs(codecs)
    for encoded in notes_at(where, "codecs"):
        for name in encoded.keys() & present.keys():
            then, now = (_settled(row, codecs[name]) for row in (encoded[name], present[name]))
            if others := [key for key in {**then, **now} if then.get(key) != now.get(key)]:
                pairs = "; ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in others)
                rank_zero_warn(
                    f"{where} was encoded by another {name} codec: {pairs}. Unless that changes nothing of what is "
                    "stored, encode again",
                    category=UserWarning,
                )

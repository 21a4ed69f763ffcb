"""From a shard's samples to stored tensors: read, filtered, cleaned, encoded, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from unidiff_core.codec.codec import Codec, EmptyRaw, Raw, check_latent, name_of
from unidiff_core.data.cleaner import Cleaner
from unidiff_core.data.filter import Filter
from unidiff_core.data.shard import STORED, Endings, Members, ending_of, listed, title_of
from unidiff_core.foundation.error import reason
from unidiff_core.foundation.precision import full_precision

ERRORS = 5
"""Messages of lost samples that a tally keeps, of the first ones."""


class LossError(ValueError):
    """More samples could not be read than may be lost."""


class Dropped(Exception):  # noqa: N818 — an outcome, no error
    """A sample that is not wanted; says why."""


@dataclass
class Tally:
    """What became of the samples that were read.

    Attributes:
        read: number of samples in the shards.
        kept: how many of them were encoded.
        dropped: reason → how many were not wanted.
        lost: how many could not be read.
        errors: what was wrong with the first of those.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    errors: list[str] = field(default_factory=list)

    def lose(self, error: str) -> None:
        """Count a sample that could not be read."""
        self.lost += 1
        self.errors = [*self.errors, error][:ERRORS]

    def add(self, other: Tally) -> None:
        """Take over another's counts."""
        self.read, self.kept, self.lost = self.read + other.read, self.kept + other.kept, self.lost + other.lost
        self.dropped.update(other.dropped)
        self.errors = [*self.errors, *other.errors][:ERRORS]

    def check(self, max_lost: float) -> None:
        """Stop if too many were lost.

        Raises:
            LossError: if more than the share `max_lost` of what was read was lost.
        """
        if self.lost > max_lost * self.read:
            raise LossError(
                f"{self.lost} of {self.read} samples could not be read, more than --max_lost={max_lost:g} allows: "
                + "; ".join(self.errors)
            )

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self) | {"dropped": dict(sorted(self.dropped.items()))}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Tally:
        """Back from a manifest."""
        return cls(row["read"], row["kept"], Counter(row["dropped"]), row["lost"], list(row["errors"]))

    def __str__(self) -> str:
        """For a person."""
        rows = [f"{self.kept} of {self.read} samples"]
        rows += [f"{count} dropped: {reason}" for reason, count in sorted(self.dropped.items())]
        rows += [f"{self.lost} lost: " + "; ".join(self.errors)] if self.lost else []
        return "\n  ".join(rows)


class RawReader:
    """Reads the raw samples of modalities from the members of a shard.

    Args:
        codecs: modality → codec.
        members: modality → ending of the member that holds it, or several of which a sample has one, where that is not
            the codec's.
        clean: modality → cleaner.
    """

    def __init__(
        self,
        codecs: Mapping[str, Codec],
        members: Mapping[str, Endings] | None = None,
        clean: Mapping[str, Cleaner] | None = None,
    ) -> None:
        self.codecs, self.clean = codecs, clean or {}
        for option in (members or {}, self.clean):
            if unknown := sorted(option.keys() - codecs.keys()):
                raise ValueError(f"no modality {', '.join(unknown)}; there are {', '.join(codecs)}")
        self.members = {name: listed((members or {}).get(name, codec.extension)) for name, codec in codecs.items()}

    def read(self, name: str, ending: str, data: bytes) -> Raw | None:
        """The raw sample of one member; None if cleaning left nothing of it.

        Raises:
            EmptyRaw: if the member holds none: it is as good as missing.
            ValueError: if the codec cannot read it.
        """
        try:
            raw = self.codecs[name].from_bytes(data)
        except EmptyRaw:
            raise
        except ValueError as error:
            raise ValueError(f"member .{ending}: {error}") from error
        return self.clean[name].clean(raw) if name in self.clean else raw


class SampleEncoder:
    """Encodes samples, a batch at a time; what is stored of a sample depends on that sample alone.

    Args:
        reader: of the modalities.
        batch_size: samples that a codec sees at a time.
        dtype: of stored floating-point tensors.
        keep: filters that a sample must pass, tried in order.
        missing: whether a sample may lack a modality.
        max_lost: share of samples that may be unreadable; the first one is an error if it is 0.
    """

    def __init__(
        self,
        reader: RawReader,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float32,
        *,
        keep: Sequence[Filter] = (),
        missing: Literal["error", "keep"] = "error",
        max_lost: float = 0.0,
    ) -> None:
        self.reader, self.batch_size, self.dtype = reader, batch_size, dtype
        self.keep, self.missing, self.max_lost = keep, missing, max_lost
        self._checked: set[str] = set()

    def samples(self, samples: Iterable[Members], name: str, tally: Tally) -> Iterator[dict[str, Any]]:
        """Encoded samples: what is not a modality's raw member (labels, say) is kept, the raw ones are not.

        Args:
            samples: members of each.
            name: of the shard, for errors.
            tally: counts what becomes of them.

        Raises:
            ValueError: if a sample cannot be read and none may be lost; names it.
        """
        for row, stored in self.tensors(samples, name, tally):
            raw = {ending for endings in self.reader.members.values() for ending in endings}
            kept = {key: value for key, value in row.items() if key not in raw}
            yield kept | {STORED: save(stored)}

    def tensors(
        self, samples: Iterable[Members], name: str, tally: Tally
    ) -> Iterator[tuple[Members, dict[str, Tensor]]]:
        """As `samples`: the members of each and its ``"<modality>.<name>"`` → tensor, without a batch dimension."""
        admitted = self._admitted(samples, name, tally)
        while batch := list(islice(admitted, self.batch_size)):
            stored = self._encode(
                [raws for _, raws in batch], [f"sample {row['__key__']} of {name}" for row, _ in batch]
            )
            yield from zip([row for row, _ in batch], stored, strict=True)

    @torch.no_grad()
    def _encode(self, batch: Sequence[Mapping[str, Raw]], titles: Sequence[str]) -> list[dict[str, Tensor]]:
        stored: list[dict[str, Tensor]] = [{} for _ in batch]
        for name, codec in self.reader.codecs.items():
            having = [i for i, raws in enumerate(batch) if name in raws]
            if not having:
                continue
            with full_precision(_device_of(codec)):
                encoded = _encoded(codec, [batch[i][name] for i in having], [titles[i] for i in having])
                if name not in self._checked:  # before a training is built on it
                    check_latent(codec, codec.latent(encoded, lambda _, shape: torch.zeros(shape)))
                    self._checked.add(name)
            for key, values in encoded.items():
                values = (values.to(self.dtype) if values.is_floating_point() else values).cpu()
                for i, value in zip(having, values, strict=True):
                    stored[i][f"{name}.{key}"] = value.contiguous()
        return stored

    def _admitted(
        self, samples: Iterable[Members], name: str, tally: Tally
    ) -> Iterator[tuple[Members, dict[str, Raw]]]:
        for row in samples:
            tally.read += 1
            try:
                raws = self._raws(row)
            except Dropped as reason:
                tally.dropped[str(reason)] += 1
                continue
            except ValueError as error:
                message = f"sample {row['__key__']} of {name}: {error}"
                if not self.max_lost:
                    raise ValueError(message) from error
                tally.lose(message)
                continue
            tally.kept += 1
            yield row, raws

    def _raws(self, row: Members) -> dict[str, Raw]:
        for filter in self.keep:
            if reason := filter.reason(row):
                raise Dropped(reason)
        raws = {}
        for name, endings in self.reader.members.items():
            ending = ending_of(row, endings)
            try:
                raw = self.reader.read(name, ending, row[ending]) if ending else None
            except EmptyRaw as error:
                self._check_missing(f"its member .{ending} for {name!r} is empty ({error})", "")
                continue
            if raw is not None:
                raws[name] = raw
            elif ending is None:
                known = ", ".join(sorted(key for key in row if key != "__key__"))
                self._check_missing(
                    f"it has no member {title_of(endings)} for {name!r}, only {known}",
                    f", and members may name another ending, or several: {{{name}: [{', '.join(endings)}, …]}}",
                )
            elif self.missing == "error":
                raise Dropped(f"nothing left of {name} after cleaning")
        if not raws:
            raise Dropped(f"none of {', '.join(self.reader.codecs)}")
        return raws

    def _check_missing(self, what: str, other: str) -> None:
        if self.missing == "error":
            raise ValueError(f"{what}; missing=keep allows that{other}")


def _device_of(codec: Codec) -> torch.device:
    """Where a codec's networks are; the CPU if it has none."""
    return next((value.device for value in chain(codec.parameters(), codec.buffers())), torch.device("cpu"))


def _encoded(codec: Codec, raws: Sequence[Raw], titles: Sequence[str]) -> dict[str, Tensor]:
    """What a codec stores of samples. If it fails at one, that one is named; if at any, it is its own fault."""
    try:
        return codec.encode(raws)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # whatever a stranger's codec raises
        failures = (_failure(codec, raw) for raw in raws)
        i, error = next(((i, error) for i, error in enumerate(failures) if error), (0, None))
        if error is None or (i == 0 and len(raws) > 1 and _failure(codec, raws[1])):
            raise
        raise ValueError(f"{titles[i]}: {name_of(codec)} cannot encode it: {reason(error)}") from error


def _failure(codec: Codec, raw: Raw) -> Exception | None:
    """What a codec raises of one sample alone."""
    try:
        codec.encode([raw])
    except Exception as error:
        return error
    return None

"""From a shard's samples to stored tensors: read, filtered, cleaned, encoded, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from unidiff_core.codec.codec import Codec, EmptyRaw, Raw, check_latent, name_of
from unidiff_core.data.cleaner import Cleaner
from unidiff_core.data.damage import FAIL, Damage, Tally
from unidiff_core.data.filter import Filter
from unidiff_core.data.shard import STORED, Endings, Members, alternatives_of, listed, numbered_in, title_of
from unidiff_core.data.tensors import MARK, alternative
from unidiff_core.foundation.argument import check_sizes
from unidiff_core.foundation.error import reason
from unidiff_core.foundation.precision import full_precision


class Dropped(Exception):  # noqa: N818 — an outcome, no error
    """A sample that is not wanted; says why."""


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

    def read_all(self, name: str, members: Mapping[str, bytes]) -> list[Raw]:
        """The raw samples of several members, without those that are empty or of which cleaning left nothing.

        Raises:
            EmptyRaw: if all are empty.
            ValueError: if the codec cannot read one.
        """
        raws: list[Raw] = []
        empty: list[EmptyRaw] = []
        for ending, data in members.items():
            try:
                raws.append(self.read(name, ending, data))
            except EmptyRaw as error:
                empty.append(error)
        if empty and not raws:
            raise empty[0]
        return [raw for raw in raws if raw is not None]


class SampleEncoder:
    """Encodes samples, a batch at a time; what is stored of a sample depends on that sample alone.

    Args:
        reader: of the modalities.
        batch_size: samples that a codec sees at a time.
        dtype: of stored floating-point tensors.
        keep: filters that a sample must pass, tried in order.
        missing: whether a sample may lack a modality.
        damage: what is done about samples that cannot be read or encoded.
    """

    def __init__(
        self,
        reader: RawReader,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float32,
        *,
        keep: Sequence[Filter] = (),
        missing: Literal["error", "keep"] = "error",
        damage: Damage = FAIL,
    ) -> None:
        check_sizes(batch_size=batch_size)
        self.reader, self.batch_size, self.dtype = reader, batch_size, dtype
        self.keep, self.missing, self.damage = keep, missing, damage
        self._checked: set[str] = set()

    def samples(self, samples: Iterable[Members], name: str, tally: Tally) -> Iterator[dict[str, Any]]:
        """Encoded samples: what is not a modality's raw member (labels, say) is kept, the raw ones are not.

        Args:
            samples: members of each.
            name: of the shard, for errors.
            tally: counts what becomes of them.

        Raises:
            ValueError: if a sample cannot be read or encoded and none may be lost; names it.
            ShardLostError: if its shard is to go with it.
        """
        for row, stored in self.tensors(samples, name, tally):
            endings = {ending for endings in self.reader.members.values() for ending in endings}
            raw = {name for ending in endings for name in numbered_in(row, ending)}
            kept = {key: value for key, value in row.items() if key not in raw}
            yield kept | {STORED: save(stored)}

    def tensors(
        self, samples: Iterable[Members], name: str, tally: Tally
    ) -> Iterator[tuple[Members, dict[str, Tensor]]]:
        """As `samples`: the members of each and its tensors, without a batch dimension.

        These are ``"<modality>.<name>"`` → tensor, and of the others that the sample has of a modality
        ``"<modality>.<name>#1"`` and so on; see `unidiff_core.data.tensors`.
        """
        admitted = self._admitted(samples, name, tally)
        while batch := list(islice(admitted, self.batch_size)):
            titles = [f"sample {row['__key__']} of {name}" for row, _ in batch]
            stored, wrong = self._encode([raws for _, raws in batch], titles)
            for i, (row, raws) in enumerate(batch):
                if i in wrong:
                    tally.kept -= 1
                    self.damage.lose(f"{titles[i]}: {wrong[i]}", tally)
                else:
                    tally.several.update(name for name, found in raws.items() if len(found) > 1)
                    yield row, stored[i]

    @torch.no_grad()
    def _encode(
        self, batch: Sequence[Mapping[str, Sequence[Raw]]], titles: Sequence[str]
    ) -> tuple[list[dict[str, Tensor]], dict[int, str]]:
        """What is stored of each sample, and number → what is wrong with it, of those of which nothing can be."""
        stored: list[dict[str, Tensor]] = [{} for _ in batch]
        wrong: dict[int, str] = {}
        for name, codec in self.reader.codecs.items():
            having = [(i, j) for i, raws in enumerate(batch) if i not in wrong for j in range(len(raws.get(name, ())))]
            for start in range(0, len(having), self.batch_size):  # more than samples, where these have several
                part = having[start : start + self.batch_size]
                encoded, failed = self._encode_part(name, [batch[i][name][j] for i, j in part])
                wrong |= {part[k][0]: why for k, why in failed.items()}
                part = [row for k, row in enumerate(part) if k not in failed]
                for key, values in encoded.items():
                    for (i, j), value in zip(part, self._as_stored(values).cpu(), strict=True):
                        if value.is_floating_point() and not bool(value.isfinite().all()):
                            wrong[i] = self._not_finite(codec, f"{name}.{key}")
                        stored[i][alternative(f"{name}.{key}", j)] = value.contiguous()
        return stored, wrong

    def _encode_part(self, name: str, raws: Sequence[Raw]) -> tuple[dict[str, Tensor], dict[int, str]]:
        codec = self.reader.codecs[name]
        with full_precision(_device_of(codec)):
            encoded, failed = _encoded(codec, raws)
            if len(failed) < len(raws) and name not in self._checked:  # before a training is built on it
                if odd := [key for key in encoded if MARK in key]:
                    raise ValueError(f"{name_of(codec)} stores {odd[0]!r}; a stored name has no {MARK!r}")
                check_latent(codec, codec.latent(encoded, lambda _, shape: torch.zeros(shape)))
                self._checked.add(name)
        return encoded, failed

    def _as_stored(self, values: Tensor) -> Tensor:
        return values.to(self.dtype) if values.is_floating_point() else values

    def _not_finite(self, codec: Codec, key: str) -> str:
        text = f"what {name_of(codec)} gives as {key} is not finite"
        if self.dtype == torch.float32:
            return f"{text}: NaN, or beyond ±{torch.finfo(self.dtype).max:.4g}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{text} in {dtype}, which ends at ±{torch.finfo(self.dtype).max:.4g}; store it as float32 (--dtype)"

    def _admitted(
        self, samples: Iterable[Members], name: str, tally: Tally
    ) -> Iterator[tuple[Members, dict[str, list[Raw]]]]:
        for row in samples:
            tally.read += 1
            try:
                raws = self._raws(row)
            except Dropped as reason:
                tally.dropped[str(reason)] += 1
                continue
            except ValueError as error:
                message = f"sample {row['__key__']} of {name}: {error}"
                self.damage.lose(message, tally, error)
                continue
            tally.kept += 1
            yield row, raws

    def _raws(self, row: Members) -> dict[str, list[Raw]]:
        """Modality → its raw samples: one, or several of which one is drawn at each use."""
        for filter in self.keep:
            if reason := filter.reason(row):
                raise Dropped(reason)
        raws = {}
        for name, endings in self.reader.members.items():
            found = alternatives_of(row, endings)
            try:
                several = self.reader.read_all(name, {ending: row[ending] for ending in found})
            except EmptyRaw as error:
                self._check_missing(f"its member .{found[0]} for {name!r} is empty ({error})", "")
                continue
            if several:
                raws[name] = several
            elif not found:
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


def _encoded(codec: Codec, raws: Sequence[Raw]) -> tuple[dict[str, Tensor], dict[int, str]]:
    """What a codec stores of the samples that it can encode, and number → why not, of the others.

    If it can encode none of several, it is its own fault, and its own error.
    """
    if not raws:
        return {}, {}
    try:
        return codec.encode(raws), {}
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # whatever a stranger's codec raises
        failures = {i: error for i, raw in enumerate(raws) if (error := _failure(codec, raw))}
        if not failures or (len(failures) == len(raws) > 1):
            raise
        wrong = {i: f"{name_of(codec)} cannot encode it: {reason(error)}" for i, error in failures.items()}
        return _encoded(codec, [raw for i, raw in enumerate(raws) if i not in wrong])[0], wrong


def _failure(codec: Codec, raw: Raw) -> Exception | None:
    """What a codec raises of one sample alone."""
    try:
        codec.encode([raw])
    except Exception as error:
        return error
    return None

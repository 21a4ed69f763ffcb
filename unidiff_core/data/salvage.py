"""Salvage: of shards that may be damaged, what can be read is read, and what cannot is counted."""

from __future__ import annotations

import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from unidiff_core.codec.codec import EmptyRaw
from unidiff_core.data.damage import FAIL, Damage, ShardLostError, Tally
from unidiff_core.data.location import Shard, list_shards, local_file, open_shard
from unidiff_core.data.shard import (
    Endings,
    Hashed,
    Patient,
    UnsortedError,
    alternatives_of,
    listed,
    numbered,
    read_samples,
    split_name,
    title_of,
)

BLOCK = tarfile.BLOCKSIZE
T = TypeVar("T")


class Salvage:
    """The samples of one shard, members undecoded, by a policy for damage.

    Iterate, then read `sha256`. `tally` counts, as read, only what is lost: whoever takes the samples counts these.

    Args:
        shard: to read.
        damage: what is done about what cannot be read.
        tally: of this shard alone.
        allow_pipe: whether a ``pipe:`` may run its command.
    """

    def __init__(self, shard: Shard, damage: Damage, tally: Tally, *, allow_pipe: bool = False) -> None:
        self.shard, self.damage, self.tally, self.allow_pipe = shard, damage, tally, allow_pipe
        self.sha256 = ""
        """Of the shard's bytes, once all was read."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples that can be read.

        Raises:
            ShardLostError: if nothing of the shard may be used, samples that were given before included.
            ValueError: if it is damaged and the policy is `fail`.
            OSError: if it cannot be read and the policy is `fail`.
        """
        num = 0

        def lose(message: str) -> None:
            nonlocal num
            num += 1
            self.tally.read += 1
            self.damage.lose(message, self.tally)

        tolerant = self.damage.policy != "fail"
        try:
            with self._open() as stream:
                source = Hashed(stream)
                for sample in read_samples(source, str(self.shard), lose if tolerant else None):
                    num += 1
                    yield sample
            self.sha256 = source.sha256.hexdigest()
            self._check_hash()
        except UnsortedError as error:
            if not tolerant:
                raise
            raise ShardLostError(str(error)) from error
        except (ValueError, OSError) as error:
            if not tolerant:
                raise
            if self.damage.policy == "skip_shard" or self.shard.sha256:  # what came before it cannot be compared
                raise ShardLostError(str(error)) from error
            self.lose_rest(str(error), num)

    def lose_rest(self, message: str, num: int = 0) -> None:
        """Count what is left of the shard after its first `num` samples.

        Raises:
            ValueError: if nothing says how many they are.
        """
        total, is_exact = self.shard.count, self.shard.count is not None
        if total is None:
            try:
                with self._open() as stream:
                    total = max(count_despite_damage(stream), num)
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"{message}. How many samples are lost with it is not known, for no manifest lists it"
                ) from error
        self.tally.lose_rest(message, max(0, total - num), is_exact=is_exact)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with open_shard(self.shard.url, allow_pipe=self.allow_pipe) as stream:
            if local_file(self.shard):
                yield stream
                return
            patient = Patient(stream, self.damage.patience, str(self.shard))
            try:
                yield patient
            finally:
                patient.close()

    def _check_hash(self) -> None:
        """Raises: ValueError if nothing may be lost, ShardLostError else: any of its samples may be the wrong one."""
        if self.shard.sha256 in (None, self.sha256):
            return
        message = f"{self.shard} is not what its manifest says: SHA-256 {self.sha256}, not {self.shard.sha256}; "
        if self.damage.policy == "fail":
            raise ValueError(message + "fetch it again")
        raise ShardLostError(message + "fetch it again")


def read_shards(where: str | Path | Sequence[str]) -> Iterator[dict[str, Any]]:
    """All samples of the shards at `where`, members undecoded, in order; see `list_shards`."""
    for shard in list_shards(where):
        yield from Salvage(shard, FAIL, Tally())


def read_having(where: str | Path | Sequence[str], *members: Endings) -> Iterator[dict[str, Any]]:
    """The samples of `read_shards` that have all of these members. At the end it warns of how many it left out.

    Args:
        where: the shards.
        *members: an ending each, or several of which a sample has one.

    Yields:
        The sample, each of the members under the first of its endings, and under ``__url__`` its shard. Where it has
        several members of an ending, the first; the others are under ``1.<ending>`` and so on.

    Raises:
        ValueError: if none has; says which members there are.
    """
    yield from parse_shards(where, members, dict)


def parse_shards(
    where: str | Path | Sequence[str],
    members: Sequence[Endings],
    read: Callable[[Mapping[str, Any]], T],
    *,
    damage: Damage = FAIL,
) -> Iterator[T]:
    """What is made of the samples that have all of these members. At the end it warns of how many it left out.

    Args:
        where: the shards; see `list_shards`.
        members: an ending each, or several of which a sample has one.
        read: makes something of a sample, as `read_having` gives it.
        damage: what is done about what cannot be read.

    Raises:
        ValueError: if none has all members, or one cannot be read and none may be lost; says which members there are.
        LossError: if more is lost than may be.
    """
    tally, known = Tally(), Counter[str]()
    shards = list_shards(where, allow_absent=damage.policy != "fail")
    total = None if None in (counts := [shard.count for shard in shards]) else sum(count or 0 for count in counts)
    lacking = f"lack {' and '.join(map(title_of, members))}"
    for shard in shards:
        own = Tally()
        samples = Salvage(shard, damage, own)
        try:
            made = list(_made(samples, members, read, own, lacking, known))
        except ShardLostError as error:
            own, made = Tally(), []
            samples.tally = own
            samples.lose_rest(str(error))
        tally.add(own)
        damage.check(tally, total)
        yield from made
    if not tally.kept and tally.dropped[lacking] == tally.read:
        names = ", ".join(sorted(known)) or "none"
        raise ValueError(f"no sample of {where} has {lacking.removeprefix('lack ')}; its members are {names}")
    for why, count in tally.dropped.items():
        warnings.warn(f"left out: {count} of {tally.read} samples of {where}, which {why}", stacklevel=2)
    if tally.errors:
        warnings.warn(f"{where}: {tally.loss}", stacklevel=2)


def _made(
    samples: Salvage,
    members: Sequence[Endings],
    read: Callable[[Mapping[str, Any]], T],
    tally: Tally,
    lacking: str,
    known: Counter[str],
) -> Iterator[T]:
    """What is made of one shard's samples; `known` counts their endings."""
    firsts = [listed(endings)[0] for endings in members]
    for sample in samples:
        tally.read += 1
        known.update(sample.keys() - {"__key__"})
        try:
            found = [alternatives_of(sample, endings) for endings in members]
            if not all(found):
                tally.dropped[lacking] += 1
                continue
            own = dict(chain(*(_named(first, sample, names) for first, names in zip(firsts, found, strict=True))))
            others = {name for names in found for name in names[1:]}
            kept = {name: content for name, content in sample.items() if name not in others}
            made = read({**kept, "__url__": str(samples.shard), **own})
        except EmptyRaw:
            tally.dropped["have an empty member"] += 1
            continue
        except ValueError as error:
            samples.damage.lose(f"sample {sample['__key__']!r} of {samples.shard}: {error}", tally, error)
            continue
        tally.kept += 1
        yield made


def _named(first: str, sample: Mapping[str, Any], names: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """A sample's alternatives, under names that begin with the first of their endings."""
    return numbered(first, [sample[name] for name in names]).items()


def count_despite_damage(stream: BinaryIO) -> int:
    """How many samples the headers in a tar's stream name that are whole, whatever lies between them."""
    keys = 0
    last = None
    skip = 0
    with suppress(EOFError, OSError, zlib.error):  # the end of what can be unpacked
        while block := stream.read(min(skip or BLOCK, 2**20)):
            if skip:
                skip -= len(block)
                continue
            if len(block) < BLOCK:
                break
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                continue
            skip = -(-max(0, header.size) // BLOCK) * BLOCK
            key = split_name(header.name)[0]
            keys += header.isreg() and key is not None and key != last
            last = key if header.isreg() else last
    return keys

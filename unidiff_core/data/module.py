"""Data modules: stored latents, raw shards or a source, in an order that is a function of the seed and the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from unidiff_core.batch import Batch
from unidiff_core.cleaner import Cleaner
from unidiff_core.codec import Codec
from unidiff_core.dataset import RawSamples, RecordsInMemory, StoredSamples, stack
from unidiff_core.encoding import RawReader, SampleEncoder, Tally
from unidiff_core.index import open_index
from unidiff_core.model_directory import describe_codecs
from unidiff_core.order import GlobalOrder, InOrder, num_micro_batches
from unidiff_core.source import Source
from unidiff_core.store import notes_at


class OrderedData(pl.LightningDataModule, ABC):
    """Micro-batches of global batches in `GlobalOrder`.

    Args:
        batch_size: samples of an optimizer step over all processes.
        micro_batch_size: samples of one process at a time; all of its share if not given. The trainer accumulates
            gradients over as many micro-batches as make up the global batch, whatever the number of processes.
        seed: of the order.
        num_workers: processes that read ahead; 0 reads in the training process.
    """

    validation_batch_size = 256

    def __init__(
        self, batch_size: int = 64, micro_batch_size: int | None = None, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.seed, self.num_workers = seed, num_workers

    @abstractmethod
    def samples(self, part: Literal["train", "validation"]) -> Any:
        """The samples of a part, indexed by `Place`; None if there are none for validation."""

    @property
    def processes(self) -> tuple[int, int]:
        """Which process this is, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def codecs(self) -> dict[str, Codec]:
        """Modality → codec, of the model that is trained."""
        if not self.trainer:
            raise ValueError(f"{type(self).__name__} reads its codecs off the model; give it to a trainer with one")
        modalities: Any = self.trainer.lightning_module.modalities
        return {name: modality.codec for name, modality in modalities.items()}

    def setup(self, stage: str) -> None:
        """Tell the trainer over how many micro-batches to accumulate.

        Raises:
            ValueError: if the global batch does not split exactly, or the trainer was told another number.
        """
        if stage != "fit" or not self.trainer:
            return
        world = self.processes[1]
        parts = num_micro_batches(self.batch_size, self.micro_batch_size or max(1, self.batch_size // world), world)
        if self.trainer.accumulate_grad_batches not in (1, parts):
            raise ValueError(
                f"trainer.accumulate_grad_batches is {self.trainer.accumulate_grad_batches}, but a global batch of "
                f"{self.batch_size} on {world} processes makes {parts} micro-batches; leave it out"
            )
        self.trainer.accumulate_grad_batches = parts

    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches from the trainer's present step on."""
        samples = self.samples("train")
        rank, world = self.processes
        order = GlobalOrder(
            len(samples),
            self.batch_size,
            micro_batch_size=self.micro_batch_size or self.batch_size // world,
            seed=self.seed,
            rank=rank,
            world=world,
            first_step=self.trainer.global_step if self.trainer else 0,
        )
        return self._loader(samples, order)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The validation samples once."""
        samples = self.samples("validation")
        if samples is None:
            return []
        rank, world = self.processes
        size = self.micro_batch_size or self.validation_batch_size  # what fits in training fits here
        return self._loader(samples, InOrder(len(samples), size, rank=rank, world=world))

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """As for validation."""
        return self.val_dataloader()

    def _loader(self, samples: Dataset[Batch], order: Any) -> DataLoader[Batch]:
        return DataLoader(samples, sampler=order, batch_size=None, num_workers=self.num_workers)


class StoredData(OrderedData):
    """Latents that `unidiffuser encode` stored. A sample may lack modalities.

    Args:
        train: encoded shards: a folder, a pattern, or a list of them, on this machine. What is named twice is shown
            twice as often.
        validation: others, for `validate`, `test` and the validation loss.
        batch_size: see `OrderedData`.
        micro_batch_size: see `OrderedData`.
        seed: see `OrderedData`.
        num_workers: see `OrderedData`.
        in_memory: read everything at the start, or each sample from a memory map when its turn comes; by size if not
            given.
    """

    def __init__(
        self,
        train: str | list[str],
        validation: str | list[str] | None = None,
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        in_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, micro_batch_size, seed, num_workers)
        self.train, self.validation, self.in_memory = train, validation, in_memory

    def samples(self, part: Literal["train", "validation"]) -> StoredSamples | None:
        """The stored samples of a part."""
        where = self.train if part == "train" else self.validation
        if where is None:
            return None
        with _naming(part):
            samples = StoredSamples.at(where, self.in_memory)
        # A codec's training reads stored tensors too, and has no modalities.
        modalities = getattr(self.trainer and self.trainer.lightning_module, "modalities", {})
        _warn_of_other_codecs(where, {name: modality.codec for name, modality in modalities.items()})
        if absent := sorted(modalities.keys() - samples.tensors.modalities):
            known = ", ".join(sorted(samples.tensors.modalities))
            raise ValueError(
                f"no sample in {where} has latents of {', '.join(absent)}, only of {known}; encode them too"
            )
        return samples


class RawData(OrderedData):
    """Raw shards, decoded and encoded as training goes, by the codecs of the model. A sample may lack modalities.

    Slower than `StoredData` by what the frozen networks cost, and the same run but for rounding.

    Args:
        train: raw shards: a folder, a pattern, or a list of them, on this machine.
        validation: others, for `validate`, `test` and the validation loss.
        batch_size: see `OrderedData`.
        micro_batch_size: see `OrderedData`.
        seed: see `OrderedData`.
        num_workers: see `OrderedData`; they decode.
        members: modality → member ending, where that is not the codec's.
        clean: modality → cleaner of its raw samples; what it leaves nothing of is missing.
    """

    validation_batch_size = 64

    def __init__(
        self,
        train: str | list[str],
        validation: str | list[str] | None = None,
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        members: dict[str, str] | None = None,
        clean: dict[str, Cleaner] | None = None,
    ) -> None:
        super().__init__(batch_size, micro_batch_size, seed, num_workers)
        self.train, self.validation, self.members, self.clean = train, validation, members, clean

    def samples(self, part: Literal["train", "validation"]) -> RawSamples | None:
        """The raw samples of a part."""
        where = self.train if part == "train" else self.validation
        if where is None:
            return None
        with _naming(part):
            index = open_index(where)
        return RawSamples(index, RawReader(self.codecs, self.members, self.clean))


class SourceData(OrderedData):
    """A source straight into training: its samples are encoded at the start and kept in memory.

    For data that fits there; every process encodes all of it. Larger sets go through `unidiffuser shards` and `encode`.

    Args:
        source: of raw samples.
        train: its split to train on.
        validation: its split for `validate`, `test` and the validation loss; none if the source has no such split.
        batch_size: see `OrderedData`.
        micro_batch_size: see `OrderedData`.
        seed: see `OrderedData`.
        num_workers: see `OrderedData`.
        members: modality → member ending, where that is not the codec's.
        clean: modality → cleaner of its raw samples.
        missing: whether a sample may lack a modality; what cleaning leaves nothing of is dropped, or missing.
        cache: keep what is encoded; otherwise the raw members, encoded anew whenever their turn comes.
    """

    validation_batch_size = 64

    def __init__(
        self,
        source: Source,
        train: str = "train",
        validation: str | None = "validation",
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        members: dict[str, str] | None = None,
        clean: dict[str, Cleaner] | None = None,
        missing: Literal["error", "keep"] = "error",
        cache: bool = True,
    ) -> None:
        super().__init__(batch_size, micro_batch_size, seed, num_workers)
        self.source, self.train, self.validation = source, train, validation
        self.members, self.clean, self.missing, self.cache = members, clean, missing, cache
        self._encoded: dict[str, StoredSamples] = {}

    def samples(self, part: Literal["train", "validation"]) -> StoredSamples | RawSamples | None:
        """The samples of a part, encoded once."""
        split = self.train if part == "train" else self.validation
        splits = self.source.splits
        if part == "validation" and (split is None or split not in splits):
            return None
        if split not in splits:
            raise ValueError(f"the source has no split {split!r}; there are {', '.join(splits)}")
        reader = RawReader(self.codecs, self.members, self.clean)
        if not self.cache:
            return self._uncached(split, reader)
        if split not in self._encoded:
            self._encoded[split] = self._encode(split, reader)
        return self._encoded[split]

    def _uncached(self, split: str, reader: RawReader) -> RawSamples:
        records = RecordsInMemory(list(self.source.samples(split)))
        for name, member in reader.members.items():
            lacking = (~records.has(member)).nonzero()[:, 0].tolist()
            if lacking and self.missing == "error":
                raise ValueError(
                    f"{records.name(lacking[0])} has no member .{member} for {name!r}; may it? missing: keep"
                )
        return RawSamples(records, reader)

    def _encode(self, split: str, reader: RawReader) -> StoredSamples:
        from rich.progress import track

        for codec in reader.codecs.values():
            codec.to(self.trainer.strategy.root_device)  # type: ignore[union-attr]
        encoder = SampleEncoder(reader, missing=self.missing)
        samples = track(self.source.samples(split), f"encode {split}", self.source.splits[split])
        tally = Tally()
        tensors = [stored for _, stored in encoder.tensors(samples, f"split {split}", tally)]
        if tally.dropped and self.processes[0] == 0:
            print(f"{split}: {tally}")
        if not tensors:
            raise ValueError(f"nothing is left of the split {split!r} of the source: {tally}")
        return StoredSamples(stack(tensors))


@contextmanager
def _naming(part: str) -> Iterator[None]:
    """Say of shards that are not there which option named them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"data.{part}: {error}") from error


def _warn_of_other_codecs(where: str | list[str], codecs: Mapping[str, Codec]) -> None:
    """Latents that another codec encoded are decoded to something else; some arguments change nothing of them."""
    present = describe_codecs(codecs)
    for encoded in notes_at(where, "codecs"):
        for name in encoded.keys() & present.keys():
            then, now = encoded[name], present[name]
            if others := [key for key in {**then, **now} if then.get(key) != now.get(key)]:
                pairs = "; ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in others)
                rank_zero_warn(
                    f"{where} was encoded by another {name} codec: {pairs}. Unless that changes nothing of what is "
                    "stored, encode again",
                    category=UserWarning,
                )

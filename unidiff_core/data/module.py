"""The data module: micro-batches in an order that is a function of the seed and the step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from unidiff_core.codec.codec import Codec
from unidiff_core.data.damage import LossError
from unidiff_core.data.order import GlobalOrder, InOrder, Place, num_micro_batches
from unidiff_core.data.samples import RawDataset, Samples, StoredSamples
from unidiff_core.foundation.argument import check_sizes, check_whole
from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.interrupt import leave_to_parent
from unidiff_core.foundation.latents import modality_of
from unidiff_core.foundation.shared import everybodys, seen_by_all

Part = Literal["train", "validation"]
_LOG = logging.getLogger(__name__)


class OrderedData(pl.LightningDataModule):
    """What `fit` trains on: micro-batches in an order fixed by seed and step, of any kind of samples.

    Args:
        train: what is trained on: shards (a folder, a pattern, or a list of them, on this machine), or a split of a
            source.
        validation: others, for `validate`, `test` and the validation loss.
        samples: of which kind they are: `StoredSamples` (latents that `unidiffuser encode` stored) if not given,
            `RawSamples` or `SourceSamples`.
        batch_size: samples of an optimizer step over all processes.
        micro_batch_size: samples of one process at a time; all of its share if not given. The trainer accumulates
            gradients over as many micro-batches as make up the global batch, whatever the number of processes.
        seed: of the order.
        num_workers: processes that read ahead; 0 reads in the training process.
    """

    def __init__(
        self,
        train: str | list[str],
        validation: str | list[str] | None = None,
        samples: Samples | None = None,
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(batch_size=batch_size, micro_batch_size=micro_batch_size)
        check_whole("num_workers", num_workers, at_least=0)
        self.train, self.validation, self.samples = train, validation, samples or StoredSamples()
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.seed, self.num_workers = seed, num_workers
        self._samples: Any = None
        self._validation: Any = None

    def dataset(self, part: Part) -> Any:
        """The samples of a part, indexed by `Place`; None if there are none for validation.

        Raises:
            ValueError: if they cannot be read; names the option and the place.
        """
        where = self.train if part == "train" else self.validation
        if where is None:
            return None
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        with _naming(part):
            if self.trainer and self.trainer.world_size > 1:
                seen_by_all(self.trainer, partial(self.samples.version, where), f"the shards {where}")
            samples = self.samples.open(where, self.codecs, device)
            if samples is None and part == "train":
                raise ValueError(f"there is no {where!r} to train on")
            return samples

    def sample_name(self, row: int) -> str:
        """What a training sample is called, for messages: its shard and key where the samples know them."""
        name = getattr(self._samples, "name", None)
        return str(name(row)) if name else f"{row} of {self.train}"

    @property
    def processes(self) -> tuple[int, int]:
        """Which process this is, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def codecs(self) -> dict[str, Codec]:
        """Modality → codec, of the model that is trained; a codec's training has no modalities."""
        modalities = getattr(self.trainer and self.trainer.lightning_module, "modalities", {})
        return {name: modality.codec for name, modality in modalities.items()}

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Say which samples could not be read and were left out, each once."""
        trains = not any(getattr(self.trainer, name, False) for name in ("validating", "testing", "sanity_checking"))
        samples = self._samples if trains else self._validation
        for why in samples.note(batch.lost) if getattr(batch, "lost", None) else ():
            _LOG.warning("left out: %s", why)
        return batch

    def count_lost(self) -> None:
        """Count what all processes could not read. They call it together.

        Raises:
            LossError: on all of them, if more is lost than may be.
        """
        for samples in (self._samples, self._validation):
            if not isinstance(samples, RawDataset) or samples.damage.policy == "fail":
                continue
            trainer: Any = self.trainer
            if trainer.strategy.reduce_boolean_decision(bool(samples.new), all=False):
                for others in everybodys(trainer, samples.new):
                    samples.note(others)
                samples.new.clear()
                samples.check()

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
        """Micro-batches of an epoch, from the trainer's present step on.

        An epoch is as many global batches as it takes to show every sample. The last one is filled up with the first
        samples of the next epoch, which begins after these.
        """
        samples = self._samples = self.dataset("train")
        rank, world = self.processes
        order = GlobalOrder(
            len(samples),
            self.batch_size,
            micro_batch_size=self.micro_batch_size or self.batch_size // world,
            seed=self.seed,
            rank=rank,
            world=world,
            first_step=self._present_step,
            num_steps=-(-len(samples) // self.batch_size),
        )
        return self._loader(samples, order)

    def _present_step(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The validation samples once, as many micro-batches on every process."""
        samples = self._validation = self.dataset("validation")
        if samples is None:
            return []
        rank, world = self.processes
        size = self.micro_batch_size or self.samples.validation_batch_size  # what fits in training fits here
        return self._loader(samples, InOrder(len(samples), size, rank=rank, world=world))

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """As for validation."""
        return self.val_dataloader()

    def _loader(self, samples: Dataset[Batch], order: Any) -> DataLoader[Batch]:
        return OrderedLoader(
            Placed(samples),
            sampler=order,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,  # epochs may be short
            worker_init_fn=leave_to_parent,
        )


class OrderedLoader(DataLoader[Batch]):
    """A loader that has nothing to remember: where it goes on is the trainer's step.

    Attributes:
        waited: seconds that its batches were waited for.
    """

    waited = 0.0

    def __iter__(self) -> Any:
        """Batches, the wait for each of which is counted."""
        batches = super().__iter__()
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing; it is there so that Lightning knows that resuming in mid-epoch is exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class Placed(Dataset[Batch]):
    """Samples whose batches say which they are; in padding every modality is missing, so that nothing of it counts."""

    def __init__(self, samples: Dataset[Batch]) -> None:
        self.samples = samples

    def __getitem__(self, place: Place) -> Batch:
        batch = self.samples[place]
        batch.rows = place.rows
        if place.is_padding:
            names = {modality_of(key) for key in batch.stored} | batch.raws.keys()
            batch.present = {name: torch.zeros(len(place.rows), dtype=torch.bool) for name in names}
            batch.num_present = dict.fromkeys(names, 0)
        return batch


@contextmanager
def _naming(part: str) -> Iterator[None]:
    """Say of shards that are not there which option named them."""
    try:
        yield
    except ValueError as error:
        kind = LossError if isinstance(error, LossError) else ValueError
        raise kind(f"data.{part}: {error}") from error

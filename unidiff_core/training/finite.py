"""Steps whose loss or gradient is not finite: skipped, logged, and the end of the run after some in a row."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from unidiff_core.foundation.batch import Batch
from unidiff_core.foundation.finite import NonFiniteError, are_finite, non_finite

SHOWN = 32
"""Samples that a line of the log names at most."""
_LOG = logging.getLogger(__name__)


class SkipNonFinite(pl.Callback):
    """Skips the optimizer's step where a loss or a gradient on any process is NaN or infinite.

    Weights, optimizer and average stay as they are, bit for bit, on all processes; the samples are logged; the schedule
    and the order of the data go on. `UniDiffuser` brings it along; put it among the callbacks for another limit.

    Args:
        limit: steps in a row after which the run ends with an error.
    """

    def __init__(self, limit: int = 10) -> None:
        if limit < 1:
            raise ValueError(f"a limit of steps in a row is at least 1, not {limit}")
        self.limit = limit
        self.skipped = False
        """Whether the last step was skipped."""
        self.num_in_a_row = 0
        self._samples: list[tuple[Any, Tensor | None]] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which samples take part, and which of them are not finite themselves."""
        if isinstance(batch, Batch):
            named = batch.index if batch.rows is None else batch.rows
            self._samples.append((named, _bad_samples(batch)))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the loss."""
        self._losses.append(loss.detach().isfinite().all())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradients away where the step is to be skipped: an optimizer leaves parameters without one alone."""
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        losses = not self._losses or bool(torch.stack(self._losses).all())
        finite = losses and are_finite([value.grad for value in parameters if value.grad is not None])
        self.skipped = not trainer.strategy.reduce_boolean_decision(finite)
        if self.skipped:
            for value in parameters:
                value.grad = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """At the end of a step: count and log.

        Raises:
            NonFiniteError: after `limit` skipped steps in a row.
        """
        if trainer.fit_loop._should_accumulate():
            return
        if self.skipped:
            self._count(trainer)
        else:
            self.num_in_a_row = 0
        self._samples, self._losses = [], []
        if self.num_in_a_row >= self.limit:
            raise NonFiniteError(
                f"the loss or its gradient was not finite in {self.num_in_a_row} steps in a row, up to step "
                f"{trainer.global_step}; the weights are those before them. The log names the samples; lower the "
                "learning rate, or clip gradients (trainer.gradient_clip_val), if they are in order"
            )

    def _count(self, trainer: pl.Trainer) -> None:
        losses = not self._losses or bool(torch.stack(self._losses).all())
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scales and trainer.strategy.reduce_boolean_decision(losses):
            return  # gradients in fp16 overflow as a matter of course, until their scale is found
        self.num_in_a_row += 1
        _LOG.warning("%s", self._report(trainer, losses))

    def _report(self, trainer: pl.Trainer, losses: bool) -> str:
        step, rank = trainer.global_step - 1, trainer.global_rank
        if not losses:
            bad = [
                rows[i] for (rows, _), ok in zip(self._samples, self._losses, strict=False) for i in _every(rows, ok)
            ]
            own = [rows[mask] for rows, mask in self._samples if mask is not None]
            rows = torch.cat(own) if any(len(row) for row in own) else torch.stack(bad) if bad else torch.empty(0)
            what = "the loss is not finite"
        else:
            rows = torch.cat([rows for rows, _ in self._samples]) if self._samples else torch.empty(0)
            what = "a gradient is not finite, here or on another process"
        names = ", ".join(sample_names(trainer, rows))
        return f"step {step} skipped on all processes: {what}; process {rank}, samples {names}"


def _every(rows: Tensor, ok: Tensor) -> range:
    return range(0 if ok else len(rows))


def _bad_samples(batch: Batch) -> Tensor | None:
    """Which samples hold numbers that are not finite, bool ``[b]``; None if nothing is stored."""
    masks = [~value.flatten(1).isfinite().all(1) for value in batch.stored.values() if value.is_floating_point()]
    return torch.stack(masks).any(0) if masks else None


def sample_names(trainer: pl.Trainer, rows: Tensor) -> list[str]:
    """What the data module calls samples, or their numbers; the first, and how many there are if they are too many."""
    name = getattr(getattr(trainer, "datamodule", None), "sample_name", str)
    return [name(int(row)) for row in rows[:SHOWN]] + [f"… ({len(rows)})"] * (len(rows) > SHOWN)


def check_finite(trainer: pl.Trainer | None, tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse to keep what is not finite. All processes call it together.

    Args:
        trainer: of the run; None outside one.
        tensors: by name; the parts on this process are looked at.
        what: would have been written, for the error.

    Raises:
        NonFiniteError: on all processes, if a tensor on any has NaN or infinity.
    """
    finite = are_finite(tensors.values())
    if trainer.strategy.reduce_boolean_decision(finite) if trainer else finite:
        return
    raise NonFiniteError(
        f"{what} is not written: {non_finite(tensors) or 'a tensor on another process'} is not finite. What was "
        "written before stays as it is; go on from an earlier checkpoint with a lower rate or gradient clipping"
    )

"""Signals: noted when they come, acted on where a step is whole: save, and stop, or have SLURM requeue the job."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from unidiff_core.foundation.interrupt import ENDING, Interrupted, at_once_if_repeated, is_heard, say
from unidiff_core.training.checkpoint import save_last


class Stopped(Interrupted):
    """A signal ended a training, on all of its processes after the same step.

    Args:
        number: of the signal.
        step: that was the last.
        path: of the checkpoint; None if there is none.
        why: there is none.
    """

    def __init__(self, number: int, step: int, path: Path | None, why: str = "") -> None:
        what = f"step {step} is saved in {path}" if path else f"stopped after step {step}, which is not saved: {why}"
        super().__init__(number, f"{signal.Signals(number).name}: {what}")
        self.path = path


class Signals(pl.Callback):
    """Notes SIGTERM, Ctrl-C and SLURM's requeue signal, and acts on them at the next boundary of optimizer steps.

    Lightning ends at SIGTERM with exit code 0 and without a checkpoint, anywhere in an accumulation; at Ctrl-C at once;
    and saves for SLURM inside of the signal's handler, between two parameters of an optimizer's step, say. Here the
    handler only notes the signal. After the step (in a validation: after its batch; it is done again when the run goes
    on) all processes agree, whichever the signal reached; they save ``last.ckpt`` and end with 143 or 130, or save and
    have SLURM requeue the job, once, and go on until SLURM ends them. Ctrl-C once more ends the process at once, and
    leaves the checkpoints that there are. `UniDiffuser` brings this along.

    Args:
        unsaved: why a training cannot go on from there, if it cannot: it then ends without saving.
    """

    def __init__(self, unsaved: str = "") -> None:
        self.unsaved = unsaved
        self._number = 0
        self._requeues = self._has_requeued = False
        self._title, self._is_first, self._listens = "", True, False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew."""
        self._listens = False

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to listen, in place of Lightning."""
        self._listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to listen, in place of Lightning."""
        self._listen(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to listen, in place of Lightning."""
        self._listen(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to listen, in place of Lightning."""
        self._listen(trainer)

    def _listen(self, trainer: pl.Trainer) -> None:
        if self._listens:
            return
        self._listens = True
        self._number, self._requeues, self._has_requeued = 0, False, False
        self._title = "saving at the end of this step" if _trains(trainer) and not self.unsaved else "stopping"
        self._is_first = trainer.is_global_zero
        for number in filter(is_heard, ENDING):
            signal.signal(number, self._note)
        requeue = _requeue_signal(trainer)
        if requeue and is_heard(requeue):
            signal.signal(requeue, self._note_requeue)
        if trainer.received_sigterm:  # by Lightning's handler, a moment ago
            self._number, trainer._signal_connector.received_sigterm = signal.SIGTERM, False

    def _note(self, number: int, frame: FrameType | None) -> None:
        at_once_if_repeated(number)
        self._number = self._number or number
        if self._is_first:
            once_more = "; once more ends at once, without saving" if number == signal.SIGINT else ""
            say(f"{signal.Signals(number).name}: {self._title}{once_more}")

    def _note_requeue(self, number: int, frame: FrameType | None) -> None:
        self._requeues = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Do what is due, at the end of a whole step."""
        if not trainer.fit_loop._should_accumulate():
            self._act(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **options: Any) -> None:
        """Do what is due: weights, average and moments are those of the last whole step."""
        self._act(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any, **options: Any) -> None:
        """Stop, if that is due."""
        self._act(trainer)

    def _act(self, trainer: pl.Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(bool(self._number or self._requeues), all=False):
            return
        noted = torch.tensor([self._number, self._requeues], device=trainer.strategy.root_device, dtype=torch.int64)
        number, requeues = trainer.strategy.reduce(noted, None, "max").tolist()
        if requeues and not self._has_requeued and _trains(trainer):
            self._has_requeued = True
            trainer._signal_connector._slurm_sigusr_handler_fn(_requeue_signal(trainer) or 0, None)  # type: ignore[arg-type]
        self._requeues = False
        if number:
            stopped = self._stopped(trainer, number)
            stopped.said = stopped.said if self._is_first else ""
            raise stopped

    def _stopped(self, trainer: pl.Trainer, number: int) -> Interrupted:
        """What ends the run, after saving; all processes call it."""
        if not _trains(trainer) or not trainer.global_step:
            return Interrupted(number)
        if self.unsaved:
            return Stopped(number, trainer.global_step, None, self.unsaved)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return Stopped(number, trainer.global_step, None, "a fast_dev_run keeps nothing")
        path = save_last(trainer)
        return Stopped(number, trainer.global_step, path, "trainer.enable_checkpointing is false")


def _trains(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == "fit"


def _requeue_signal(trainer: pl.Trainer) -> signal.Signals | None:
    """The signal at which a job is to be requeued; None outside of SLURM."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None

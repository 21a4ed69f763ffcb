"""SLURM's requeue signal: saved for at a step boundary, not inside the signal's handler."""

from __future__ import annotations

import signal
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import SLURMEnvironment


class Requeue(pl.Callback):
    """Puts off what Lightning does at SLURM's requeue signal (save, ``scontrol requeue``) to the end of the step.

    Lightning's handler saves wherever the signal happens to interrupt Python: between two parameters of an optimizer's
    step, say, or on one process while another communicates. All processes do it after the same step, whichever the
    signal reached first. `UniDiffuser` brings this along; it does nothing outside SLURM.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._signal: signal.Signals | None = None
        self._due = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the place of Lightning's handler."""
        environment = trainer._accelerator_connector.cluster_environment
        self._due, self._signal = False, None
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._signal = environment.requeue_signal
            self._handler = signal.signal(self._signal, self._note)  # type: ignore[arg-type]

    def _note(self, number: int, frame: Any) -> None:
        self._due = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Do what is due, at the end of a whole step."""
        if self._signal is None or trainer.fit_loop._should_accumulate():
            return
        if trainer.strategy.reduce_boolean_decision(self._due, all=False):
            self._due = False
            if callable(self._handler):
                self._handler(self._signal, None)

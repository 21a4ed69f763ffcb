"""Accumulation: a resumed run begins at the first micro-batch of a step, however many make up a step now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

KEY = "accumulation"
"""Of a checkpoint: how many micro-batches make up a step, after which the last validation was due, and after which the
last was that came to its end."""
_COUNTS = ("ready", "started", "processed", "completed")


class Accumulation(pl.Callback):
    """Puts Lightning's count of micro-batches where the checkpoint's steps are.

    Lightning steps the optimizer where that count divides by `accumulate_grad_batches`. A checkpoint from the middle of
    an accumulation (by a validation, `max_time`, an exception), or of another number of micro-batches in a step, left
    it anywhere: from there on every step mixed two global batches. The data begins at the checkpoint's step, gradients
    of a part of a step are not kept, and so that part is done again. `UniDiffuser` brings it along.
    """

    def __init__(self) -> None:
        self._validated = self._due = -1
        self._resumed = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember where it was."""
        self._validated = trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def lacks_validation(self, trainer: pl.Trainer) -> bool:
        """Whether a validation that was due after the last micro-batch did not come to its end."""
        ready = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return bool(self._due == ready != self._validated)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record what the counts mean."""
        own = {"micro_batches": trainer.accumulate_grad_batches, "validated": self._validated, "due": self._due}
        checkpoint[KEY] = own

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Change the counts before Lightning restores them."""
        if trainer.state.fn != "fit" or "loops" not in checkpoint:
            return
        then, now = checkpoint.get(KEY) or {}, trainer.accumulate_grad_batches
        reopen_epoch(checkpoint["loops"]["fit_loop"])
        to_whole_steps(checkpoint["loops"]["fit_loop"], then.get("micro_batches"), now)
        self._validated = then.get("validated", -1) if then.get("micro_batches") == now else -1
        if then.get("due", -1) == checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]:
            self._due = then["due"]
            if self._due != self._validated:
                reopen_validation(checkpoint["loops"]["fit_loop"])
        self._resumed = True

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Loggers count steps."""
        if self._resumed:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self._resumed = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """What is done again is not validated again."""
        loop = trainer.fit_loop.epoch_loop
        if trainer.fit_loop._data_fetcher and loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self._due = loop.batch_progress.total.ready
        if loop.batch_progress.total.ready == self._validated:
            loop._skip_next_val = True


def to_whole_steps(loop: Mapping[str, Any], then: int | None, now: int) -> None:
    """Bring a fit loop's counts of micro-batches, of the epoch and of the run, to its counts of steps.

    Args:
        loop: its state in a checkpoint, changed in place.
        then: micro-batches of a step when it was written; None if it does not say.
        now: micro-batches of a step.
    """
    progress = loop["epoch_loop.batch_progress"]
    steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    current, total = progress["current"], progress["total"]
    done = current["processed"]
    target = steps["current"]["completed"] * now
    is_whole = bool(then) and (done % then == 0 or progress["is_last_batch"])
    if (then == now and is_whole) or done == target:
        return
    overall = total["processed"] - (done - target) if then == now else steps["total"]["completed"] * now
    for counts, goal in ((current, target), (total, overall)):
        # Where a step was whole, by how much a count is ahead or behind tells Lightning which hook had the save.
        offset = counts["processed"] if is_whole else None
        counts |= {name: goal + (counts[name] - offset if offset is not None else 0) for name in _COUNTS}


def reopen_validation(loop: Mapping[str, Any]) -> None:
    """Have a validation that was due where a checkpoint was written, and had not come to its end, done from its start.

    Lightning takes it for done, or goes on in its middle without what was summed.

    Args:
        loop: a fit loop's state in a checkpoint, changed in place.
    """
    progress = loop["epoch_loop.val_loop.batch_progress"]
    for counts in (progress["current"], progress["total"]):  # begun, and nothing of it done
        counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress["is_last_batch"] = False


def reopen_epoch(loop: Mapping[str, Any]) -> None:
    """Take back that an epoch is over, which Lightning also counts where `max_time` or `max_steps` cut it off.

    Args:
        loop: a fit loop's state in a checkpoint, changed in place.
    """
    batches = loop["epoch_loop.batch_progress"]
    if batches["is_last_batch"] or not batches["total"]["processed"]:
        return
    for counts in (loop["epoch_progress"]["current"], loop["epoch_progress"]["total"]):
        if counts["processed"] == counts["started"] > 0:
            counts |= {"processed": counts["started"] - 1, "completed": counts["started"] - 1}

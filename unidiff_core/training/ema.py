"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from unidiff_core.foundation.distributed import gathered, laid_out_like, local, reshard
from unidiff_core.training.finite import SkipNonFinite, check_finite
from unidiff_core.training.objective import at_least_float32


class EMA(pl.Callback):
    """Averages trainable parameters after each optimizer step; frozen codecs and buffers are not its business.

    The average is a thing of its own: under its own key in the checkpoint, in its own file of a model directory, put
    into the network only inside ``with ema.applied(model)``. It is kept in float32 at least, whatever the weights are
    in: the steps of a slow average are smaller than what bfloat16 tells apart.

    Args:
        decay: of the average, after a warm-up in which it is (1 + n)/(10 + n) at step n.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average is in [0, 1), not {decay}")
        self.decay = decay
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}

    @staticmethod
    def _trained(module: nn.Module) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin from the weights or go on from the checkpoint, in the layout that the strategy gave the weights.

        Raises:
            ValueError: if the checkpoint's average is of other parameters than those that are trained.
        """
        reshard(pl_module)
        trained = self._trained(pl_module)
        if self.average and self.average.keys() != trained.keys():
            differing = ", ".join(sorted(self.average.keys() ^ trained.keys())[:3])
            raise ValueError(f"the checkpoint's average is of other parameters than are trained now: {differing}, …")
        start = self.average or trained
        self.average = {name: laid_out_like(start[name], at_least_float32(value)) for name, value in trained.items()}
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Update, if the optimizer stepped; a step that was skipped is none."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if any(row.skipped for row in trainer.callbacks if isinstance(row, SkipNonFinite)):  # type: ignore[attr-defined]
            return
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        trained = self._trained(pl_module)
        average = [local(value) for value in self.average.values()]
        weights = [local(trained[name]).to(mean.dtype) for name, mean in zip(self.average, average, strict=True)]
        torch._foreach_lerp_(average, weights, 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with the averaged weights, put back at the end."""
        reshard(module)
        trained = self._trained(module)
        kept = {name: value.clone() for name, value in trained.items()}
        try:
            for name, value in trained.items():
                local(value).copy_(local(self.average[name]))
            yield
        finally:
            reshard(module)
            for name, value in trained.items():
                local(value).copy_(local(kept[name]))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse an average that is not finite.

        Raises:
            NonFiniteError: if it is not.
        """
        check_finite(trainer, self.average, "the checkpoint")

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the whole average, wherever its shards lie. All processes call it; the first has it."""
        average = gathered(self.average, keeps=rank_zero_only.rank == 0)  # type: ignore[attr-defined]
        return {"average": average, "num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.average, self.num_updates = state_dict["average"], state_dict["num_updates"]

"""Resuming begins at a whole step: other numbers of micro-batches, checkpoints from the middle of an accumulation."""

from __future__ import annotations

import contextlib

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, Timer

from tests.core.data.test_epochs import BATCH, STEPS, fit
from tests.core.tiny import make, weights
from unidiff_core.training.ema import EMA
from unidiff_core.training.learning_rate import Plateau

pytestmark = pytest.mark.usefixtures("registered")
PARTS = (1, 2, 4)
INTERVALS = {"check_val_every_n_epoch": None, "val_check_interval": 3}


def run(folder, parts, first=None, callbacks=(), **options):
    """Two epochs in `parts` micro-batches a step: the weights, the average, the plateau, what was seen, the trainer."""
    model, ema, plateau = make().double(), EMA(0.5), Plateau(patience=99)
    precise = {
        "precision": "64-true",
        "enable_checkpointing": any(isinstance(row, ModelCheckpoint) for row in callbacks),
    }
    trainer, log = fit(
        folder, model, [ema, plateau, *callbacks], BATCH // parts, first=first, **precise, **INTERVALS | options
    )
    return weights(model), torch.cat([row.flatten() for row in ema.average.values()]), plateau, log, trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, by the number of micro-batches."""
    return {parts: run(tmp_path_factory.mktemp("whole"), parts) for parts in PARTS}


def check(resumed, whole):
    """The same run to its end, and every step in its own global batch."""
    for found, wanted in zip(resumed[:2], whole[:2], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-8, rtol=0)
    trainer, parts = resumed[4], resumed[4].accumulate_grad_batches
    assert (trainer.global_step, trainer.current_epoch) == (2 * STEPS, 2)
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 2 * STEPS
    steps = resumed[3].steps
    assert steps == [step for step in range(steps[0], 2 * STEPS) for _ in range(parts)] if steps else True


class Stop(Timer):
    """max_time, counted in micro-batches."""

    def __init__(self, limit):
        super().__init__({"seconds": limit})
        self.num = 0

    def time_elapsed(self, stage="train"):
        return self.num

    def on_train_batch_end(self, *args, **options):
        self.num += 1
        super().on_train_batch_end(*args, **options)


class Fail(pl.Callback):
    """An error after a number of micro-batches."""

    def __init__(self, limit):
        self.limit = limit

    def on_train_batch_end(self, *args):
        self.limit -= 1
        if not self.limit:
            raise OSError("the data is gone")


@pytest.mark.parametrize("then", PARTS)
def test_every_step_goes_on_with_another_number_of_micro_batches(tmp_path, whole, then):
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(tmp_path, then, callbacks=[keep])
    for now in PARTS:
        for step in (1, 3, 4) if now != then else (2,):
            check(run(tmp_path, now, tmp_path / f"step={step}.ckpt"), whole[now])


@pytest.mark.parametrize("then", [2, 4])
def test_checkpoints_of_a_validation_in_the_middle_of_a_step(tmp_path, whole, then):
    keep = ModelCheckpoint(tmp_path, filename="{validation/loss}", save_top_k=-1, auto_insert_metric_name=False)
    paths = []
    keep.on_validation_end = lambda trainer, module: (
        paths.append(tmp_path / f"{len(paths)}.ckpt"),
        trainer.save_checkpoint(paths[-1]),
    )
    run(tmp_path, then, callbacks=[keep])
    assert len(paths) == 2 * STEPS * then // 3
    for path in paths:
        for now in PARTS if path == paths[1] else (then,):
            resumed = run(tmp_path, now, path)
            check(resumed, whole[now])
            if now == then:  # no validation is lost, and none counts twice
                assert resumed[2].state_dict() == whole[now][2].state_dict()


@pytest.mark.parametrize(("stop", "at"), [(Stop, 1), (Stop, 15), (Fail, 5), (Fail, 15)])
def test_stopped_in_the_middle_of_a_step(tmp_path, whole, stop, at):
    keep = ModelCheckpoint(tmp_path, filename="kept", save_on_exception=True, every_n_epochs=99)
    with contextlib.suppress(OSError):
        trainer = run(tmp_path, 4, callbacks=[stop(at), keep], val_check_interval=99)[4]
        trainer.save_checkpoint(tmp_path / "kept.ckpt")
    (path,) = tmp_path.glob("*.ckpt")
    progress = torch.load(path, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert progress["processed"] == at
    for now in PARTS:
        check(run(tmp_path, now, path), whole[now])

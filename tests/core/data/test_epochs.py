"""Epochs: a pass over the data, and what Lightning makes of it."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.core.tiny import Pairs, make, trainer, weights
from unidiff_core.data.module import OrderedData
from unidiff_core.data.samples import Samples

pytestmark = pytest.mark.usefixtures("registered")
SIZE, BATCH, STEPS = 40, 16, 3
"""Samples, those of a global batch, and global batches of an epoch."""


class PairDataset(Pairs):
    def __init__(self, size):
        super().__init__(size)
        self.size = size

    def __len__(self):
        return self.size


class PairSamples(Samples):
    def open(self, where, codecs, device):
        return PairDataset(SIZE if where == "train" else 10)


class Log(pl.Callback):
    """Rows and steps of every micro-batch, and the steps of validations."""

    def __init__(self):
        self.rows, self.steps, self.validations = [], [], []

    def on_train_batch_start(self, trainer, module, batch, *_):
        self.rows.append(batch.rows)
        self.steps.append(batch.step)

    def on_validation_start(self, trainer, module):
        self.validations.append(trainer.global_step)


def fit(tmp_path, model, callbacks=(), micro=None, workers=0, steps=-1, first=None, **options):
    log, data = Log(), OrderedData("train", "validation", PairSamples(), BATCH, micro, num_workers=workers)
    run = trainer(tmp_path, steps, [log, *callbacks], **{"max_epochs": 2, "num_sanity_val_steps": 0} | options)
    run.fit(model, datamodule=data, ckpt_path=first, weights_only=True)
    return run, log


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("micro", [None, 8])
def test_an_epoch_is_a_pass_over_the_data(tmp_path, micro, workers):
    run, log = fit(tmp_path, make(), micro=micro, workers=workers)
    assert (run.global_step, run.current_epoch, log.validations) == (2 * STEPS, 2, [STEPS, 2 * STEPS])
    rows = torch.cat(log.rows)
    assert torch.equal(rows[:SIZE].sort().values, torch.arange(SIZE))
    assert torch.equal(rows[SIZE : 2 * SIZE].sort().values, torch.arange(SIZE))
    assert log.steps == sorted(log.steps) and set(log.steps) == set(range(2 * STEPS))


@pytest.mark.parametrize(
    ("options", "steps", "validations"),
    [
        ({"limit_train_batches": 2}, 4, [2, 4]),
        ({"limit_train_batches": 0.67}, 4, [2, 4]),
        ({"max_epochs": 1, "val_check_interval": 0.34}, 3, [1, 2, 3]),
        ({"val_check_interval": 2}, 6, [2, 5]),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, 6, [4]),
        ({"check_val_every_n_epoch": 2}, 6, [6]),
        ({"max_epochs": -1, "steps": 5}, 5, [3]),
    ],
)
def test_options_mean_what_lightning_says(tmp_path, options, steps, validations):
    run, log = fit(tmp_path, make(), **options)
    assert (run.global_step, log.validations) == (steps, validations)
    assert len({tuple(row.tolist()) for row in log.rows}) == steps
    assert log.steps == list(range(steps))


@pytest.mark.parametrize("micro", [None, 8])
def test_every_step_can_be_resumed_from_bit_for_bit(tmp_path, micro, recwarn):
    whole = make()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    _, log = fit(tmp_path, whole, [keep], micro, enable_checkpointing=True)
    for step in range(1, 2 * STEPS):
        again = make()
        run, rest = fit(tmp_path, again, (), micro, first=tmp_path / f"step={step}.ckpt")
        assert (run.global_step, run.current_epoch) == (2 * STEPS, 2), step
        assert torch.equal(weights(again), weights(whole)), step
        assert rest.steps == [row for row in log.steps if row >= step]
        assert set(rest.validations) >= {row for row in log.validations if row > step}
    assert not [row for row in recwarn if "not resumable" in str(row.message)]

"""Signals are noted, and acted on at the boundaries of steps; `tests/faults/signals.py` counts whole trainings."""

from __future__ import annotations

import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.trainer.connectors import signal_connector

from tests.core.data.test_epochs import BATCH, fit
from tests.core.tiny import loader, make, trainer, weights
from unidiff_core.foundation.interrupt import Interrupted
from unidiff_core.training.ema import EMA
from unidiff_core.training.learning_rate import Plateau
from unidiff_core.training.signals import Signals, Stopped

pytestmark = pytest.mark.usefixtures("registered", "heard")


class Send(pl.Callback):
    """SIGTERM in the first micro-batch of a step, or in a validation at or after it."""

    def __init__(self, step, in_validation=False):
        self.step, self.in_validation, self.sent = step, in_validation, False

    def _send(self, trainer, is_due):
        if is_due and trainer.global_step >= self.step and not (self.sent or trainer.sanity_checking):
            self.sent = True
            signal.raise_signal(signal.SIGTERM)

    def on_train_batch_start(self, trainer, *_):
        self._send(trainer, not self.in_validation)

    def on_validation_batch_start(self, trainer, *_):
        self._send(trainer, self.in_validation)


def keep(folder):
    return ModelCheckpoint(folder, save_last=True, every_n_epochs=99, save_top_k=0)


EPOCHS = {"enable_checkpointing": True, "max_epochs": 3, "check_val_every_n_epoch": 1}


@pytest.mark.parametrize("send", [Send(0), Send(2), Send(3), Send(3, in_validation=True), Send(6, in_validation=True)])
def test_no_validation_is_lost_or_counts_twice(tmp_path, send):
    """By epochs of three steps, the plateau being moved by every validation."""

    def run(*callbacks, **options):
        model, plateau = make(), Plateau(patience=1, threshold=0.9, factor=0.5)
        run, log = fit(tmp_path, model, [plateau, *callbacks], BATCH // 2, **EPOCHS, **options)
        return weights(model), plateau.state_dict(), log.validations, run

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=rf"SIGTERM: step \d is saved in {tmp_path / 'last.ckpt'}") as stop:
        run(keep(tmp_path), send)
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert saved == send.step + (not send.in_validation)
    rest = run(keep(tmp_path), first=tmp_path / "last.ckpt")
    whole = run(keep(tmp_path / "whole"))
    assert torch.equal(rest[0], whole[0]) and rest[1] == whole[1]
    assert rest[2] == [step for step in whole[2] if step >= saved]
    assert rest[3].current_epoch == whole[3].current_epoch == 3


def test_where_nothing_is_kept_it_says_so(tmp_path):
    for options in ({"enable_checkpointing": False}, {"fast_dev_run": 4}):
        with pytest.raises(
            Stopped, match=f"SIGTERM: stopped after step 2, which is not saved: .*{next(iter(options))}"
        ):
            trainer(tmp_path, 4, [Send(1)], **options).fit(make(), loader())
    with pytest.raises(Stopped, match="there is no way"):
        trainer(tmp_path, 4, [Send(1), Signals("there is no way")]).fit(make(), loader())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_validation_of_its_own_stops_without_a_checkpoint(tmp_path):
    with pytest.raises(Interrupted) as stop:
        trainer(tmp_path, 4, [Send(0, in_validation=True)]).validate(make(), loader())
    assert (stop.value.code, stop.value.said) == (143, None)


def test_the_requeue_signal_is_saved_for_at_the_end_of_the_step(tmp_path, monkeypatch):
    environment = {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "7", "JOB_NAME": "train"}
    for name, value in environment.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    requeued = []
    monkeypatch.setattr(signal_connector, "call", lambda command: requeued.append(command) or 0)

    def fit(model, steps, **options):
        ema = EMA(0.9)
        run = trainer(tmp_path, steps, [ema], plugins=[SLURMEnvironment()], accumulate_grad_batches=2)
        run.fit(model, loader(micro=8, first=options.pop("first", 0)), **options)
        return torch.cat([value.flatten() for value in ema.average.values()])

    whole, half, rest = make(), make(), make()
    step = type(half).training_step

    def interrupted(self, batch):
        if (batch.step, int(batch.index[0])) == (2, 0):  # in the first micro-batch of the third step
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not requeued
        return step(self, batch)

    average = fit(whole, 5)
    half.training_step = interrupted.__get__(half)
    fit(half, 4)
    saved = tmp_path / "hpc_ckpt_1.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 3
    assert requeued == [["scontrol", "requeue", "7"]]
    assert torch.equal(fit(rest, 5, first=3, ckpt_path=saved, weights_only=True), average)
    assert torch.equal(weights(rest), weights(whole))

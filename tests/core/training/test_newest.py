"""Which checkpoint a run goes on from, and what a requeue signal leaves."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.trainer.connectors import signal_connector

from tests.core.tiny import loader, make, trainer, weights
from unidiff_core.training.ema import EMA
from unidiff_core.training.newest import OtherModelError, newest_verified

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def checkpoints(tmp_path):
    """Three checkpoints of the steps 1, 2, 3, and their model."""
    model, found = make(), []
    for step in (1, 2, 3):
        run = trainer(tmp_path, step)
        run.fit(model, loader())
        found.append(tmp_path / f"{step}.ckpt")
        run.save_checkpoint(found[-1])
        os.utime(found[-1], (step, step))
    return found, model


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    name = max(range(len(content) - 64), key=lambda i: content[i : i + 64].count(0) == 0 and i < len(content) // 2)
    content[name] ^= 1
    path.write_bytes(content)


def pickle(path):
    torch.save({"state_dict": OtherModelError}, path)


def not_finite(path):
    checkpoint = torch.load(path, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = float("nan")
    torch.save(checkpoint, path)


def weights_only(path):
    torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"]}, path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "BadZipFile"),
        (flip, "SHA-256"),
        (pickle, "UnpicklingError"),
        (not_finite, "not finite"),
        (weights_only, "it has no optimizer_states"),
        (lambda path: path.write_bytes(b""), "BadZipFile"),
    ],
)
def test_a_damaged_one_is_skipped_and_named(checkpoints, damage, says):
    paths, model = checkpoints
    damage(paths[2])
    os.utime(paths[2], (9, 9))
    newest, skipped = newest_verified(paths, model)
    assert newest == paths[1]
    assert len(skipped) == 1 and str(paths[2]) in skipped[0] and says in skipped[0]


def test_where_none_verifies_nothing_of_another_model_is_written_over(checkpoints):
    paths, model = checkpoints
    assert newest_verified(paths, model) == (paths[2], [])
    cut(paths[0])
    assert newest_verified(paths[:1], model)[0] is None
    other = torch.nn.Linear(2, 2)
    with pytest.raises(OtherModelError, match=r"3\.ckpt is of another model"):
        newest_verified(paths, other)


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

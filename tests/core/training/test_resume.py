"""Resuming: progress is restored, settings are the configuration's."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from functools import partial

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch.optim import AdamW, lr_scheduler

from tests.core.group import in_group
from tests.core.tiny import loader, make, trainer, weights
from unidiff_core.training.ema import EMA
from unidiff_core.training.law import Shared
from unidiff_core.training.learning_rate import Plateau, Warmup

pytestmark = pytest.mark.usefixtures("registered")


WARMUP = partial(Warmup, steps=2)


def model(lr=2e-3, schedule=WARMUP, **options):
    made = make()
    made.optimizer = partial(AdamW, **{"lr": lr, "betas": (0.9, 0.9), "weight_decay": 0.1} | options)
    made.lr_scheduler = schedule
    return made


def resumed(tmp_path, then, now, steps=4, first=3, callbacks=((), ())):
    """The trainer and the model that go on from `then`'s checkpoint, and what was told."""
    before = trainer(tmp_path, first, callbacks[0])
    before.fit(then, loader())
    before.save_checkpoint(tmp_path / "then.ckpt")
    after, told = trainer(tmp_path, steps, callbacks[1]), io.StringIO()
    with contextlib.redirect_stdout(told):
        after.fit(now, loader(first=first), ckpt_path=tmp_path / "then.ckpt", weights_only=True)
    return after, [row for row in told.getvalue().splitlines() if row.startswith("resume: ")]


def test_a_longer_run_moves_on(tmp_path):
    cosine = [partial(Warmup, steps=2, decay_until=until) for until in (3, 8)]
    now = model(schedule=cosine[1])
    done, told = resumed(tmp_path, model(schedule=cosine[0]), now)
    state = torch.load(tmp_path / "then.ckpt", weights_only=True)["state_dict"]
    assert max((value - state[name]).abs().max() for name, value in now.state_dict().items()) > 1e-4
    assert told == ["resume: Warmup decay_until 3 → 8", "resume: max_steps 3 → 4"]
    fresh = Warmup(AdamW(make().parameters(), lr=2e-3), steps=2, decay_until=8)
    assert done.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-3 * fresh._factor(4), rel=1e-12)


def test_settings_are_the_configurations_and_progress_the_checkpoints(tmp_path):
    then = EMA(0.5), Plateau(factor=0.1, patience=5)
    then[1].best = 0.25
    now = EMA(0.75), Plateau(factor=0.5, patience=2), EarlyStopping("train/loss", patience=9)
    done, told = resumed(tmp_path, model(), model(lr=1e-3, weight_decay=0.0, betas=(0.8, 0.95)), callbacks=(then, now))
    group = done.optimizers[0].param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-3, 0.0, (0.8, 0.95))
    assert {row["step"].item() for row in done.optimizers[0].state.values()} == {4}
    assert (now[0].decay, now[0].num_updates) == (0.75, 4)
    assert (now[1].factor, now[1].patience, now[1].best) == (0.5, 2, 0.25)
    assert "resume: lr 0.002 → 0.001" in told and "resume: weight_decay 0.1 → 0.0" in told
    assert "resume: EMA decay 0.5 → 0.75" in told and "resume: Plateau patience 5 → 2" in told
    assert len(told) == 7


def test_what_a_stranger_restores_is_put_back_too(tmp_path):
    callbacks = [[EarlyStopping("train/loss", patience=patience)] for patience in (3, 9)]
    step = [partial(lr_scheduler.StepLR, step_size=2, gamma=gamma) for gamma in (0.5, 0.1)]
    done, told = resumed(tmp_path, model(schedule=step[0]), model(1e-3, step[1]), callbacks=callbacks)
    assert callbacks[1][0].patience == 9
    assert done.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)
    assert "resume: EarlyStopping patience 3 → 9" in told and "resume: StepLR gamma 0.5 → 0.1" in told


def test_nothing_changed_is_nothing_told_and_the_same_bits(tmp_path):
    make_one = partial(model, schedule=partial(Warmup, steps=2, decay_until=7))
    whole, half = make_one(), make_one()
    trainer(tmp_path, 6).fit(whole, loader())
    _, told = resumed(tmp_path, make_one(), half, steps=6)
    assert torch.equal(weights(whole), weights(half)) and told == ["resume: max_steps 3 → 6"]


def test_another_process_is_refused_and_another_law_is_told(tmp_path):
    now = model()
    now.objective = replace(now.objective, law=Shared())
    _, told = resumed(tmp_path, model(), now)
    assert [row for row in told if "timestep law" in row and "Shared" in row]
    other = model()
    other.modalities["a"].process.prediction = "velocity"
    with pytest.raises(ValueError, match=r"another process of a: .*flow.*, and now it is .*velocity"):
        resumed(tmp_path, model(), other)


def test_processes_that_were_configured_differently_do_not_begin(tmp_path):
    """On both, with the same words."""

    def begin(rank):
        now = model(lr=1e-3 * (1 + rank))
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        with pytest.raises(ValueError) as refused:
            trainer(tmp_path, 2, **options).fit(now, loader())
        return str(refused.value)

    says = "the processes begin differently: lr 0.002 on process 1, 0.001 on process 0. Do all read the same"
    first, second = in_group(2, begin)
    assert first == second and first.startswith(says)

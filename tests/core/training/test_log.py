"""What a training logs: losses by stretch of time, the gradient's norm, the rate, and where the time goes."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.data import DataLoader

from tests.core.tiny import Pairs, make, trainer
from unidiff_core.data.module import OrderedData
from unidiff_core.data.samples import Samples
from unidiff_core.training.law import Atoms
from unidiff_core.training.log import LogTraining

EVERY = 5


class Slow(Pairs):
    """Data that is waited for."""

    def __len__(self):
        return 64

    def __getitem__(self, place):
        time.sleep(0.02)
        return super().__getitem__(place)


class SlowSamples(Samples):
    def open(self, where, codecs, device):
        return Slow()


def logged(tmp_path, model, steps=10, callback=None, micro=None, **options):
    """Step → what was logged, and what the objective's watchers were told of each step."""
    rows, seen = {}, []
    data = OrderedData("a line", samples=SlowSamples(), batch_size=16, micro_batch_size=micro)
    made = trainer(tmp_path, steps, [callback or LogTraining()], log_every_n_steps=EVERY, **options)
    made._logger_connector.log_metrics = lambda metrics, step=None: rows.setdefault(made.global_step, {}).update(
        metrics
    )
    model.objective.watchers.append(lambda *told: seen.append(told))
    made.fit(model, data)
    return {step: row for step, row in rows.items() if step % EVERY == 0}, seen, made


@pytest.mark.parametrize("micro", [16, 4])
def test_losses_by_stretch_of_time_are_means_over_the_samples_since_the_last(tmp_path, micro):
    model = make(drop_ignored=True, timestep_law={"a": Atoms({0.1: 0.4, 1: 0.2})})
    rows, seen, _ = logged(tmp_path, model, micro=micro)
    assert sorted(rows) == [5, 10] and len(seen) == 10 * 16 // micro * 2
    for step, part in ((5, seen[: len(seen) // 2]), (10, seen[len(seen) // 2 :])):
        for key in ("a.v", "b.s"):
            told = [row for row in part if row[0] == key]
            error = torch.cat([row[1].flatten(1).mean(1) for row in told])
            t, there = (torch.cat([row[i] for row in told]) for i in (2, 3))
            assert not there.all() if key == "a.v" else there.all()
            for i in range(4):
                here = there & (t >= 250 * i) & (t < 250 * (i + 1))
                name = f"train/{key}/{i / 4:.2f}-{(i + 1) / 4:.2f}"
                assert rows[step][name] == pytest.approx(float(error[here].mean()), rel=1e-5)
    assert len(model.objective.watchers) == 1, "its own is gone"


def test_the_gradients_norm_is_that_before_clipping_and_the_rate_that_of_the_step(tmp_path):
    model, norms = make(), []
    clip = type(model).configure_gradient_clipping

    def noted(optimizer, **options):
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()))
        clip(model, optimizer, **options)

    model.configure_gradient_clipping = noted
    rows, _, made = logged(tmp_path, model, gradient_clip_val=1e-3)
    assert [rows[step]["train/gradient_norm"] for step in (5, 10)] == pytest.approx([norms[4], norms[9]], rel=1e-5)
    assert norms[4] > 1e-2
    assert rows[10]["train/learning_rate"] == made.optimizers[0].param_groups[0]["lr"]


def test_times_add_up(tmp_path):
    began = time.monotonic()
    rows, _, _ = logged(tmp_path, make())
    whole = time.monotonic() - began
    for row in rows.values():
        assert 0.02 < row["train/seconds_for_data"] < row["train/seconds_per_step"] < whole / 5
        assert row["train/samples_per_second"] == pytest.approx(16 / row["train/seconds_per_step"])


def test_validation_is_no_part_of_a_steps_time(tmp_path):
    class Rests(LogTraining):
        def on_validation_start(self, *arguments):
            super().on_validation_start(*arguments)
            time.sleep(1.0)

    data = OrderedData("a line", "a line", samples=SlowSamples(), batch_size=16)
    options = {"val_check_interval": 3, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    made = trainer(tmp_path, 5, [Rests()], log_every_n_steps=EVERY, limit_val_batches=1, **options)
    rows = {}
    made._logger_connector.log_metrics = lambda metrics, step=None: rows.update(metrics)
    made.fit(make(), data)
    assert rows["train/seconds_per_step"] < 0.2


def test_any_loader_will_do_and_bands_are_positive(tmp_path):
    made = trainer(tmp_path, 5, [LogTraining(bands=1)], log_every_n_steps=EVERY)
    made.fit(
        make(),
        DataLoader(
            Pairs(),
            sampler=OrderedData("a line", samples=SlowSamples(), batch_size=16).train_dataloader().sampler,
            batch_size=None,
        ),
    )
    assert "train/a.v/0.00-1.00" in made.callback_metrics and made.callback_metrics["train/seconds_for_data"] == 0
    with pytest.raises(ValueError, match="bands is at least 1"):
        LogTraining(bands=0)

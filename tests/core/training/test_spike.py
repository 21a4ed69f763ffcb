"""Spikes of the loss are logged with their samples, and nothing else is."""

from __future__ import annotations

import math

import pytest
import torch

from tests.core.tiny import loader, make, trainer
from unidiff_core.training.spike import FEWEST, LogSpikes


def spiking(factor, at):
    model = make()
    step = type(model).training_step

    def training_step(batch):
        loss = step(model, batch)
        return loss * factor if (batch.step, int(batch.index[0])) in at else loss

    model.training_step = training_step
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_spike_is_logged_with_the_samples_of_its_step(tmp_path, caplog, accumulate):
    data = loader(micro=16 // accumulate)
    trainer(tmp_path, 40, accumulate_grad_batches=accumulate).fit(spiking(100.0, {(30, 0)}), data)
    (said,) = [row.message for row in caplog.records if "spike" in row.message]
    assert said.startswith("step 30: the loss of process 0 is a spike")
    assert said.endswith("samples " + ", ".join(map(str, range(16))))


def test_noise_and_a_falling_loss_are_no_spikes_and_a_spike_hides_no_other():
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    watch = LogSpikes()
    for step in range(5000):
        loss = (1 + 5 * math.exp(-step / 100)) * (1 + 0.1 * float(torch.randn((), generator=generator)))
        alarms += loss > watch.limit
        watch.recent.append(loss)
    assert alarms == 0
    for _ in range(10):
        assert watch.limit < 3
        watch.recent.append(50.0)


def test_nothing_is_judged_by_too_few():
    watch = LogSpikes(window=FEWEST)
    watch.recent.extend([1.0] * (FEWEST - 1))
    assert watch.limit == math.inf
    watch.recent.append(1.0)
    assert 1 < watch.limit < 1.1
    with pytest.raises(ValueError, match="window at least 20"):
        LogSpikes(window=5)

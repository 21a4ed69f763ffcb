"""The average of the weights."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from tests.core.tiny import loader, make, trainer, weights
from unidiff_core.training.ema import EMA

pytestmark = pytest.mark.usefixtures("registered")


def test_ema_is_the_average_and_never_stays_in_the_network(tmp_path):
    model, ema, seen = make(), EMA(0.5), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen.append({name: value.detach().clone() for name, value in module.named_parameters()})

    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer(tmp_path, 4, [Watch(), ema]).fit(model, loader())
    for name, value in start.items():
        for n, row in enumerate(seen, 1):
            value.lerp_(row[name], 1 - min(0.5, (1 + n) / (10 + n)))
        assert torch.allclose(value, ema.average[name], atol=1e-6)
    before = weights(model)
    with pytest.raises(RuntimeError, match="inside"), ema.applied(model):
        assert not torch.equal(weights(model), before)
        raise RuntimeError("inside")
    assert torch.equal(weights(model), before)

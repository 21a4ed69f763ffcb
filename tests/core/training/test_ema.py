"""The average of the weights."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

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


@pytest.fixture
def alone():
    """One process that is a group, so that FSDP2 has something to distribute over."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_under_fsdp2_it_is_what_the_module_computes_with_and_only_inside(alone):
    """A forward pass without a backward leaves the root whole; what is written into its parts would change nothing."""
    model = torch.nn.Linear(3, 2)
    plain = {name: value.detach().clone() for name, value in model.named_parameters()}
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    ema = EMA(0.9)
    ema.average = {name: value.detach() * 3 for name, value in model.named_parameters()}
    x = torch.randn(4, 3)
    outside = torch.nn.functional.linear(x, plain["weight"], plain["bias"])
    with torch.no_grad():
        assert torch.equal(model(x), outside)
        with ema.applied(model):
            assert torch.allclose(model(x), 3 * outside)
        assert torch.equal(model(x), outside)

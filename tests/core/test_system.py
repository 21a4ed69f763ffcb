"""The LightningModule: the randomness rule in training, resumption, sampling."""

from __future__ import annotations

import pytest
import torch

from tests.core.tiny import loader, make, trainer, weights
from unidiff_core import UniDiffuser
from unidiff_core.foundation.batch import Batch
from unidiff_core.sampling.spec import SpecError
from unidiff_core.training.ema import EMA

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def directory(tmp_path):
    make().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_dropping_is_refused_where_processes_would_wait_for_ever():
    model = make(drop_ignored=True)
    model._device_mesh = {"data_parallel": None}
    with pytest.raises(ValueError, match="FSDP2"):
        model.configure_model()


def test_resumed_run_continues_the_same_run(tmp_path):
    whole, ema = make(), EMA(0.9)
    trainer(tmp_path, 8, [ema]).fit(whole, loader())
    first, first_ema = make(), EMA(0.9)
    half = trainer(tmp_path, 4, [first_ema])
    half.fit(first, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    second, second_ema = make(), EMA(0.9)
    trainer(tmp_path, 8, [second_ema]).fit(second, loader(first=4), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(whole), weights(second))
    assert all(torch.equal(value, second_ema.average[name]) for name, value in ema.average.items())


def test_accumulated_micro_batches_give_the_same_run(tmp_path):
    whole, parts = make(), make()
    trainer(tmp_path, 5).fit(whole, loader())
    trainer(tmp_path, 5, accumulate_grad_batches=4).fit(parts, loader(micro=4))
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)


def test_two_runs_are_the_same_and_another_seed_is_not(tmp_path):
    one, two, other = make(), make(), make(seed=1)
    for model in (one, two, other):
        trainer(tmp_path, 3).fit(model, loader())
    assert torch.equal(weights(one), weights(two)) and not torch.equal(weights(one), weights(other))


def test_samples_do_not_depend_on_the_batch_size(directory):
    model = UniDiffuser.from_pretrained(directory)
    whole = model.sample("a, b", num=7, steps=3, solver="ddpm")
    parts = model.sample("a, b", num=7, steps=3, solver="ddpm", batch_size=2)
    assert whole == {name: pytest.approx(values, abs=1e-5) for name, values in parts.items()}


def test_given_values_must_fit_the_number_of_samples():
    model = make()
    with pytest.raises(SpecError, match="3 values of 'b' are given for 2 samples"):
        model.sample("a | b", {"b": [1.0, 2.0, 3.0]}, num=2)
    with pytest.raises(SpecError, match="at least 1, not 0"):
        model.sample("a", num=0)
    assert len(model.sample("a | b", {"b": [1.0, 2.0, 3.0]}, steps=1)["a"]) == 3


def test_raw_and_stored_batches_give_the_same_loss(tmp_path):
    model = make()
    model.log = lambda *_, **__: None
    model.trainer = trainer(tmp_path, 1)
    index = torch.arange(4)
    raws = {"a": [0.1, 0.2, 0.3, 0.4], "b": [1.0, 2.0, 3.0, 4.0]}
    stored = {
        f"{name}.{key}": value
        for name, values in raws.items()
        for key, value in model.modalities[name].codec.encode(values).items()
    }
    assert torch.equal(
        model.training_step(Batch(index, 5, raws=raws)), model.training_step(Batch(index, 5, stored=stored))
    )

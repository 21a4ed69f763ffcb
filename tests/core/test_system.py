"""The LightningModule: the randomness rule in training, resumption, sampling."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from tests.core.conftest import NumberCodec
from tests.core.tiny import Pairs, loader, make, trainer, weights
from unidiff_core import Modality, UniDiffuser
from unidiff_core.data.damage import Tally
from unidiff_core.data.encoding import RawReader, SampleEncoder
from unidiff_core.data.module import Placed
from unidiff_core.data.order import InOrder
from unidiff_core.foundation.batch import Batch
from unidiff_core.network.uvit import UViT
from unidiff_core.sampling.spec import SpecError
from unidiff_core.training.ema import EMA

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def directory(tmp_path):
    make().save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_dropping_is_refused_where_processes_would_wait_for_ever():
    model = make(drop_ignored=True)
    model.backbone.takes_kept = False
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
    with pytest.raises(ValueError, match="at least 1, not 0"):
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


class Gaps(Pairs):
    """Samples that lack modalities, unevenly."""

    def __getitem__(self, place):
        batch = super().__getitem__(place)
        batch.present = {"a": place.rows % 3 > 0, "b": place.rows >= 20}
        batch.stored["a.v"] = batch.stored["a.v"] * (1 + place.rows[:, None])
        return batch


@pytest.mark.parametrize("balance", ["elements", "streams"])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_loss_does_not_depend_on_batches_or_padding(tmp_path, balance, stage):
    model, found = make(balance), []
    for size, world in ((64, 1), (16, 1), (8, 1), (5, 1), (5, 4)):
        # Processes one after another: the last of them is padding.
        orders = [InOrder(64, size, rank=rank, world=world) for rank in range(world)]
        places = [place for order in orders for place in order]
        assert any(place.is_padding for place in places) == (world > 1)
        data = DataLoader(Placed(Gaps()), sampler=places, batch_size=None)
        (row,) = getattr(trainer(tmp_path, 1), stage)(model, data, verbose=False)
        found.append(row)
    for row in found:
        assert row == pytest.approx(found[0], rel=1e-6) and len(row) == 3


class MatrixCodec(NumberCodec):
    """Numbers through a network, which autocast would round."""

    def encode(self, raws):
        value = super().encode(raws)["v"] + torch.full((self.width,), 1e-3)
        return {"v": torch.nn.functional.linear(value, torch.eye(self.width) / 3)}

    def latent(self, stored, draw):
        return {"v": torch.nn.functional.linear(stored["v"], torch.eye(self.width))}


def test_what_a_codec_gives_does_not_depend_on_the_precision_around_it(tmp_path):
    codec, seen = MatrixCodec(), []
    model = UniDiffuser({"a": Modality(codec)}, partial(UViT, width=16, depth=3, heads=2))
    raws = [0.1, 0.2, 0.7]
    batch = Batch(torch.arange(3), 0, raws={"a": raws})

    def step(*_):
        encoder = SampleEncoder(RawReader({"a": codec}))
        rows = ({"__key__": str(i), "num": str(raw).encode()} for i, raw in enumerate(raws))
        stored = torch.stack([row["a.v"] for _, row in encoder.tensors(rows, "rows", Tally())])
        seen.extend([model.latents(batch)["a.v"], model.encode({"a": raws})["a.v"], stored])
        return torch.zeros((), requires_grad=True)

    step()
    model.training_step = step
    for precision in ("bf16-mixed", "bf16-true"):
        data = DataLoader([batch], batch_size=None)
        trainer(tmp_path, 1, precision=precision).fit(model, data)
    assert len(seen) == 9 and all(torch.equal(value, seen[0]) for value in seen)

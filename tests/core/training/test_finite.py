"""NaN and infinity: in a sample, the loss, a gradient, the weights."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.core.tiny import Pairs, loader, make, trainer, weights
from unidiff_core import UniDiffuser, system
from unidiff_core.foundation.finite import NonFiniteError
from unidiff_core.serialization.description import ModelDirectoryError
from unidiff_core.training.checkpoint import ModelDirectory
from unidiff_core.training.ema import EMA
from unidiff_core.training.finite import SkipNonFinite

pytestmark = pytest.mark.usefixtures("registered")


class Watch(pl.Callback):
    """Everything that a step may change, after each step."""

    def __init__(self, ema):
        self.ema, self.seen = ema, []

    def on_train_batch_end(self, trainer, module, *_):
        moments = [value.clone() for row in trainer.optimizers[0].state.values() for value in row.values()]
        average = [value.clone() for value in self.ema.average.values()]
        self.seen.append([weights(module).detach().clone(), torch.tensor(self.ema.num_updates), *average, *moments])


def same(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def poisoned_loss(model, at, value=float("nan")):
    step = type(model).training_step

    def training_step(batch):
        loss = step(model, batch)
        return loss * value if (batch.step, int(batch.index[0])) in at else loss

    model.training_step = training_step
    return model


def poisoned_gradient(model, at):
    parameter = next(model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf") if model.trainer.global_step in at else gradient)
    return model


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("poison", ["loss", "constant", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, caplog, poison, accumulate, precision):
    model, ema = make(), EMA(0.9)
    watch = Watch(ema)
    if poison == "gradient":
        poisoned_gradient(model, {2})
    else:
        value = float("nan") if poison == "loss" else torch.tensor(0.0) + float("inf")
        poisoned_loss(model, {(2, 0)}, value)
    trainer(
        tmp_path, 5, [ema, watch], accumulate_grad_batches=accumulate, precision=precision, gradient_clip_val=1.0
    ).fit(model, loader(micro=16 // accumulate))
    seen = watch.seen[accumulate - 1 :: accumulate]
    assert same(seen[2], seen[1]) and not same(seen[1], seen[0]) and not same(seen[3], seen[2])
    assert all(value.isfinite().all() for row in seen for value in row)
    (said,) = [row.message for row in caplog.records if "skipped" in row.message]
    assert said.startswith("step 2 skipped on all processes")
    named = list(range(16 if poison == "gradient" else 16 // accumulate))
    assert said.endswith("samples " + ", ".join(map(str, named)))


def test_a_sample_that_is_not_finite_is_named(tmp_path, caplog, monkeypatch):
    made = Pairs.__init__

    def with_a_bad_one(self, *args):
        made(self, *args)
        self.stored["a.v"][5, 1] = float("inf")

    monkeypatch.setattr(Pairs, "__init__", with_a_bad_one)
    data = loader(batch_size=64)
    place = next(iter(data.sampler))
    model = make()
    with pytest.raises(NonFiniteError, match=r"3 steps in a row, up to step 3"):
        trainer(tmp_path, 9, [SkipNonFinite(limit=3)]).fit(model, data)
    at = int((place.rows == 5).nonzero()[0])
    assert f"process 0, samples {at}\n" in caplog.text
    assert torch.equal(weights(model), weights(make()))


def test_the_last_good_checkpoint_and_directory_survive(tmp_path):
    folder = tmp_path / "run"
    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=2, save_on_exception=True)
    model = poisoned_loss(make(), {(step, 0) for step in range(3, 99)})
    run = trainer(tmp_path, 99, [EMA(0.9), ModelDirectory(str(folder)), keep], enable_checkpointing=True)
    with pytest.raises(NonFiniteError, match="10 steps in a row"):
        run.fit(model, loader())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert {int(row["step"]) for row in state["optimizer_states"][0]["state"].values()} == {3}


def test_weights_that_are_not_finite_are_neither_kept_nor_sampled(tmp_path, monkeypatch):
    model, folder = make(), tmp_path / "run"
    run = trainer(tmp_path, 1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "good.ckpt")
    model.save_pretrained(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with torch.no_grad():
        name, value = next(iter(model.named_parameters()))
        value.view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError, match=f"the checkpoint is not written: {name} is not finite"):
        run.save_checkpoint(tmp_path / "good.ckpt")
    with pytest.raises(NonFiniteError, match=f"run is not written: {name}"):
        model.save_pretrained(folder)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(NonFiniteError, match="nothing to sample"):
        model.sample("a", steps=1)
    monkeypatch.setattr(system, "check_finite", lambda *_: None)
    model.save_pretrained(folder, overwrite=True)
    with pytest.raises(ModelDirectoryError, match=f"are not finite, {name} for one"):
        UniDiffuser.from_pretrained(folder)

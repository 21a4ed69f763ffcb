"""What a training leaves behind: the model directory and its average."""

from __future__ import annotations

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from tests.core.tiny import Pairs, loader, make, trainer, weights
from unidiff_core import UniDiffuser
from unidiff_core.data.order import InOrder
from unidiff_core.training.checkpoint import KeepLast, ModelDirectory
from unidiff_core.training.clean_std import MeasureCleanStd
from unidiff_core.training.ema import EMA

pytestmark = pytest.mark.usefixtures("registered")


def held():
    return DataLoader(Pairs(), sampler=InOrder(24, 8, rank=0, world=1), batch_size=None)


def training_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())["training"]


def test_a_run_without_an_average_leaves_none_of_an_earlier_run(tmp_path):
    folder = tmp_path / "run"
    for callbacks in ([EMA(0.9)], []):
        model = make()
        trainer(tmp_path, 2, [*callbacks, ModelDirectory(str(folder))]).fit(model, loader())
        assert (folder / "ema.safetensors").exists() == bool(callbacks)
    assert torch.equal(weights(UniDiffuser.from_pretrained(folder)), weights(model))


def test_the_average_is_float32_whatever_the_weights_are(tmp_path):
    ema, model = EMA(0.999), make()
    run = trainer(tmp_path, 1, [ema, ModelDirectory(str(tmp_path / "run"))], precision="bf16-true")
    run.fit(model, loader())
    assert next(model.parameters()).dtype == torch.bfloat16
    ema.num_updates = 10**6
    for value in model.parameters():
        value.data.fill_(1)
    for value in ema.average.values():
        value.fill_(0)
    for step in range(1, 1001):
        ema._step = step - 1
        ema.on_train_batch_end(type("Trainer", (), {"global_step": step, "callbacks": []})(), model)
    values = torch.cat([value.flatten() for value in ema.average.values()])
    assert torch.allclose(values, torch.tensor(1 - 0.999**1000), atol=1e-4)
    assert {value.dtype for value in ema.state_dict()["average"].values()} == {torch.float32}
    assert {value.dtype for value in load_file(tmp_path / "run" / "ema.safetensors").values()} == {torch.float32}


def test_a_finished_run_whose_directory_is_behind_writes_it_again(tmp_path):
    folder, saved = tmp_path / "run", []
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    for steps in (2, 4):
        model = make()
        first = trainer(tmp_path, steps, [EMA(0.9), ModelDirectory(str(folder)), keep], enable_checkpointing=True)
        first.fit(model, loader())
        assert training_of(folder) == {"step": steps, "checkpoint": f"step={steps}.ckpt"}
        saved.append(
            {file: (folder / file).read_bytes() for file in ("model.safetensors", "ema.safetensors", "config.yaml")}
        )
    for file, content in saved[0].items():  # as if killed after the last checkpoint, before the directory
        (folder / file).write_bytes(content)
    again = trainer(tmp_path, 4, [EMA(0.9), ModelDirectory(str(folder))])
    again.fit(make(), loader(first=4), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert {file: (folder / file).read_bytes() for file in saved[1]} == saved[1]


@pytest.mark.parametrize("left", ["behind", "cut off", "gone"])
def test_a_finished_run_whose_last_checkpoint_is_behind_writes_it_again(tmp_path, left):
    def run(steps, **options):
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True)
        done = trainer(tmp_path, steps, [KeepLast(), EMA(0.9), keep], enable_checkpointing=True)
        done.fit(make(), loader(first=steps if options else 0), **options)
        return torch.load(tmp_path / "last.ckpt", weights_only=True)

    run(2)
    behind = (tmp_path / "last.ckpt").read_bytes()
    expected = run(4)
    content = {"behind": behind, "cut off": behind[:1000], "gone": None}[left]
    (tmp_path / "last.ckpt").unlink()
    if content is not None:
        (tmp_path / "last.ckpt").write_bytes(content)  # as if killed after step=4.ckpt
    found = run(4, ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert found["global_step"] == 4
    assert all(torch.equal(found["state_dict"][name], value) for name, value in expected["state_dict"].items())
    run(2, ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4  # nothing newer is written over


def test_a_finished_run_that_was_killed_before_its_last_validation_does_it(tmp_path):
    def run(**options):
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1, save_last=True)
        callbacks = [KeepLast(), EMA(0.9), MeasureCleanStd(2), ModelDirectory(str(tmp_path / "run")), keep]
        model = make()
        done = trainer(
            tmp_path, 4, callbacks, enable_checkpointing=True, num_sanity_val_steps=0,
            val_check_interval=2, check_val_every_n_epoch=None,
        )  # fmt: skip
        done.fit(model, loader(first=4 if options else 0), held(), **options)
        return done.callback_metrics, (tmp_path / "run/clean_std.yaml").read_bytes()

    losses, table = run()
    for name in ("last.ckpt", "run/clean_std.yaml", "run/config.yaml"):
        (tmp_path / name).unlink()
    again, table_again = run(ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert again["validation/loss"] == losses["validation/loss"] and table_again == table
    assert training_of(tmp_path / "run")["step"] == 4 and (tmp_path / "last.ckpt").is_file()


def test_a_fast_dev_run_writes_nothing(tmp_path):
    folder = tmp_path / "run"
    trainer(tmp_path, 2, [EMA(0.9), ModelDirectory(str(folder))], fast_dev_run=True).fit(make(), loader())
    assert not folder.exists()


def test_a_resumed_run_does_not_save_again_the_step_that_it_goes_on_from(tmp_path):
    def fit(steps, **options):
        keep = ModelCheckpoint(tmp_path, filename="{step}", save_last=True, every_n_train_steps=3, save_top_k=-1)
        run = trainer(tmp_path, steps, [keep], accumulate_grad_batches=2, enable_checkpointing=True)
        run.fit(make(), loader(micro=8, first=options.pop("first", 0)), **options)

    fit(3)
    before = (tmp_path / "step=3.ckpt").stat().st_mtime_ns
    fit(6, first=3, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    names = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert names == ["last.ckpt", "step=3.ckpt", "step=6.ckpt"]
    assert (tmp_path / "step=3.ckpt").stat().st_mtime_ns == before

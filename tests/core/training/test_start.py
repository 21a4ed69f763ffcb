"""Starting from a model directory: all of it, with adapters, with a modality more."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from unidiff_core import Modality, Start, UniDiffuser
from unidiff_core.foundation.batch import Batch
from unidiff_core.network.lora import LoRA, merged
from unidiff_core.network.uvit import UViT
from unidiff_core.serialization.description import ModelDirectoryError
from unidiff_core.training.checkpoint import ModelDirectory
from unidiff_core.training.ema import EMA
from unidiff_core.training.learning_rate import Warmup


@pytest.fixture
def start(registered, tmp_path):
    """A model directory of two modalities."""
    number, step = registered
    torch.manual_seed(0)
    modalities = {"a": Modality(number(), weight=2.0), "b": Modality(step(4))}
    model = UniDiffuser(modalities, partial(UViT, width=16, depth=3, heads=2), balance="streams")
    model.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def fit(model, steps=3, callbacks=(), names="ab"):
    """Some steps on b = −a (and c = a)."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return steps

        def __getitem__(self, step):
            x = torch.linspace(-1, 1, 8)[:, None]
            stored = {"a.v": x.repeat(1, 3), "b.s": -x[:, None].repeat(1, 2, 4), "c.v": x.repeat(1, 5)}
            return Batch(torch.arange(8), step, {key: value for key, value in stored.items() if key[0] in names})

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **options
    )
    trainer.fit(model, DataLoader(Rows(), batch_size=None))
    return model


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_start_takes_everything_from_the_directory(start):
    model = UniDiffuser(start=Start(str(start)))
    assert model.objective.balance == "streams" and model.modalities["a"].weight == 2.0 and model.backbone.width == 16
    assert all(torch.equal(value, load_file(start / "model.safetensors")[name]) for name, value in state(model).items())


def test_the_average_is_where_it_starts_unless_the_models_own_weights_are_asked_for(start):
    model = UniDiffuser.from_pretrained(start)
    model.save_pretrained(
        start, overwrite=True, average={name: value + 1 for name, value in model.state_dict().items()}
    )
    averaged, own = UniDiffuser(start=Start(str(start))), UniDiffuser(start=Start(str(start), weights="model"))
    before = state(model)
    assert all(torch.equal(value, before[name] + 1) for name, value in state(averaged).items())
    assert all(torch.equal(value, before[name]) for name, value in state(own).items())


def test_only_adapters_train_and_merge_back_exactly(start, tmp_path):
    adapted = Start(str(start), lora=LoRA(rank=4, alpha=8))
    model = UniDiffuser(start=adapted, lr_scheduler=partial(Warmup, steps=1))
    before = state(model)
    ema = EMA(0.5)
    fit(model, callbacks=[ema, ModelDirectory(str(tmp_path / "tuned"))])
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed and all(".lora_" in name for name in changed) and set(ema.average) >= changed
    tuned = UniDiffuser.from_pretrained(tmp_path / "tuned", weights="model")
    assert set(tuned.state_dict()) == set(load_file(start / "model.safetensors"))
    latents = {"a.v": torch.randn(4, 3), "b.s": torch.randn(4, 2, 4)}
    times = {name: torch.tensor([1.0, 300.0, 600.0, 1000.0]) for name in "ab"}
    with torch.no_grad():
        adapted, plain = model.backbone(latents, times), tuned.backbone(latents, times)
    assert max((adapted[key] - plain[key]).abs().max().item() for key in adapted) <= 1e-6
    averaged = load_file(tmp_path / "tuned/ema.safetensors")
    with ema.applied(model):
        want = merged(model.state_dict(), model)
    assert all(torch.equal(averaged[name], value) for name, value in want.items())


def test_adapters_start_as_nothing(start):
    plain, adapted = UniDiffuser(start=Start(str(start))), UniDiffuser(start=Start(str(start), lora=LoRA()))
    latents, times = {"a.v": torch.randn(2, 3), "b.s": torch.randn(2, 2, 4)}, dict.fromkeys("ab", torch.ones(2))
    want, got = plain.backbone(latents, times), adapted.backbone(latents, times)
    assert max((got[key] - value).abs().max().item() for key, value in want.items()) <= 1e-6


def grown(start, registered, lr_scheduler=None, **options):
    torch.manual_seed(1)
    return UniDiffuser({"c": Modality(registered[0](5))}, lr_scheduler=lr_scheduler, start=Start(str(start), **options))


def test_a_new_modality_that_is_dropped_leaves_old_queries_bit_identical(start, registered):
    old, new = UniDiffuser.from_pretrained(start), grown(start, registered)
    assert list(new.modalities) == ["a", "b", "c"]
    for spec, given in [("a | b", {"b": 0.5}), ("a, b", None)]:  # these ignore nothing but the new one
        want = old.sample(spec, given, num=4, steps=3, seed=2)
        assert new.sample(spec, given, num=4, steps=3, seed=2, drop_ignored=True) == want
        assert new.sample(spec, given, num=4, steps=3, seed=2) != want


def test_only_what_is_new_trains_where_the_rest_is_frozen(start, registered):
    model = grown(start, registered, freeze=True, lr_scheduler=partial(Warmup, steps=1))
    before = state(model)
    fit(model, names="abc")
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed and all("c:" in name for name in changed)
    assert grown(start, registered, lora=LoRA()).backbone.streams["c:v"].embed.weight.requires_grad


def test_what_does_not_fit_is_named(start, registered):
    with pytest.raises(ModelDirectoryError, match=r"of another shape: .*streams\.a:v\.embed"):
        UniDiffuser({"a": Modality(registered[0](7))}, start=Start(str(start)))


def test_what_is_trained_from_a_directory_keeps_its_licence(start, tmp_path):
    config = yaml.safe_load((start / "config.yaml").read_text())
    (start / "config.yaml").write_text(yaml.safe_dump(config | {"licence": "AGPL-3.0", "sources": ["somewhere"]}))
    UniDiffuser(start=Start(str(start))).save_pretrained(tmp_path / "tuned")
    tuned = UniDiffuser.from_pretrained(tmp_path / "tuned")
    assert (tuned.licence, tuned.sources) == ("AGPL-3.0", ("somewhere",))

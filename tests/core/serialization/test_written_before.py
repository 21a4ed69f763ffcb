"""What the version of 2026-11-21 wrote, before core had rooms, still loads: a model directory, a checkpoint, latents.

`written_before` was made by that version: three steps of a tiny `fit` (its model directory, `checkpoint.pt`), a sample
of it, and the weights after three steps more (`resumed`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from unidiff_core import UniDiffuser
from unidiff_core.cli.fit import run
from unidiff_core.evaluation.show import ShowSamples

BEFORE = Path(__file__).parent / "written_before"
RECIPE = Path(__file__).parents[3] / "recipes/digits/fit.yaml"
CODECS = {
    "image": {"class_path": "ImageCodec", "init_args": {"clip_width": 3, "size": 16, "downsampling": 4}},
    "text": {"class_path": "TextCodec", "init_args": {"length": 3, "width": 4}},
}
CODECS["image"]["init_args"] |= {"latent_channels": 2, "patch": 2}


def test_a_model_directory_samples_the_same_numbers():
    model = UniDiffuser.from_pretrained(BEFORE, allow_hub=True)
    got = model.sample_latents("image, text", {}, num=2, steps=4, seed=0, guidance=1.0)
    for key, value in load_file(BEFORE / "sample.safetensors").items():
        assert torch.allclose(got[key], value, atol=1e-6)


def test_a_checkpoint_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(ShowSamples, "on_train_start", lambda *_: None)  # its codecs' weights are not there
    monkeypatch.setattr(ShowSamples, "_show", lambda *_: None)
    (tmp_path / "checkpoints").mkdir()
    latents = shutil.copytree(BEFORE / "latents", tmp_path / "latents")  # their index is written beside them
    shutil.copy(BEFORE / "checkpoint.pt", tmp_path / "checkpoints/last.ckpt")
    codecs = [f"--model.modalities.{name}.codec={codec}" for name, codec in CODECS.items()]
    run(
        [
            *("fit", "--config", str(RECIPE), *codecs, f"--data.train={latents}", "--data.validation=null"),
            *("--data.batch_size=8", "--model.lr_scheduler.steps=2", "--trainer.max_steps=6"),
            *("--model.backbone.width=8", "--model.backbone.depth=3", "--model.backbone.heads=2"),
            *(
                f"--trainer.default_root_dir={tmp_path}",
                "--trainer.logger=false",
                "--trainer.enable_progress_bar=false",
            ),
            *("--trainer.log_every_n_steps=1", "--model.lr_scheduler.decay_until=6"),
        ]
    )
    for name in ("model", "ema"):
        found = load_file(tmp_path / f"{name}.safetensors")
        for key, value in load_file(BEFORE / f"resumed/{name}.safetensors").items():
            assert torch.allclose(found[key], value, atol=1e-6), key

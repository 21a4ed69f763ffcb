"""Every fit-codec recipe takes two steps and validates in its own precision and clipping; small, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.codecs.conftest import CAPTIONS, CLIP, GPT, picture, png
from unidiff_core.cli import fit_codec
from unidiff_core.codec.waveform import Waveform, to_wav
from unidiff_core.data.shard import write_shards
from unidiff_core.foundation.plugin import load_plugins

ROOT = Path(__file__).parents[2] / "recipes"
WHOLE = {"output", "trainer", "seed_everything"}
"""What a recipe has; an overlay, which goes on top of one, has less."""
RECIPES = sorted(path for path in ROOT.rglob("*.yaml") if yaml.safe_load(path.read_text()).keys() >= WHOLE)


def small(name, clip, text_decoder):
    """What makes a recipe's network small, and free of those that are fetched or that another recipe trains."""
    return {
        "digits/autoencoder": {},
        "digits/clip": {"model": CLIP},
        "digits/text_decoder": {"clip": clip, "gpt": GPT},
        "digits/finetune_text_decoder": {"clip": clip, "pretrained": text_decoder},
        "digits_audio/autoencoder": {},
        "emoji/autoencoder": {},
        "emoji/line_autoencoder": {},
        "image_text/autoencoder": {"pretrained": None, "channels": [4, 8], "latent_channels": 2},
        "image_text/text_decoder": {"clip": clip, "gpt": GPT, "width": 4},
    }[name]


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Shards whose samples have every member that a recipe reads."""
    folder = tmp_path_factory.mktemp("members")
    sound = to_wav(Waveform(np.random.default_rng(0).uniform(-0.5, 0.5, 2048).astype(np.float32), 8000))
    images = [png(picture(i)) for i in range(16)]
    rows = [
        {"__key__": f"{i:04d}", "png": image, "jpg": image, "txt": CAPTIONS[i].encode(), "wav": sound}
        | {"picture.png": image, "line.png": image}
        for i, image in enumerate(images)
    ]
    write_shards(folder, rows)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("precision", [None, "bf16-mixed"])
def test_recipe_takes_two_steps(path, precision, members, clip, text_decoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_plugins()
    recipe = yaml.safe_load(path.read_text())
    model = small(f"{path.parent.name}/{path.stem}", clip, text_decoder)
    data = {"folder": members, "batch_size": 4, "holdout": 0.25}
    data |= {"size": 32} if "size" in recipe["data"]["init_args"] else {}
    options = [
        f"--model.{name}={value if isinstance(value, Path) else json.dumps(value)}" for name, value in model.items()
    ]
    options += [f"--data.{name}={value}" for name, value in data.items()]
    options += ["--trainer.accelerator=cpu", "--trainer.max_steps=2", "--trainer.enable_progress_bar=false"]
    options += [f"--trainer.precision={precision}"] * bool(precision)
    cli = fit_codec._parse(["-c", str(path), *options])
    fit_codec._drop_checkpoints(cli.trainer)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    assert cli.trainer.global_step == 2 and cli.trainer.precision == (
        precision or recipe["trainer"].get("precision", "32-true")
    )
    assert all(value.isfinite().all() for value in cli.model.state_dict().values())

"""Tiny networks, made here, saved and loaded through the paths that released weights take."""

from __future__ import annotations

import io
import socket

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from unidiff_codecs.training import (
    AutoencoderTraining,
    CaptionData,
    ClipTraining,
    ImageData,
    PairData,
    TextDecoderTraining,
)

from unidiff_core.data.shard import write_shards

CAPTIONS = [
    f"a {colour} {word}" for colour in ("red", "green", "blue", "grey") for word in ["one", "two", "three", "four"]
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing in these tests may reach for the network."""

    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rows = [
        {"__key__": f"{i:04d}", "png": png(picture(i)), "txt": CAPTIONS[i % len(CAPTIONS)].encode()} for i in range(48)
    ]
    write_shards(folder, rows)
    return folder


def fit(training, data, folder):
    """Two steps of training, then the export."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        **{"accelerator": "cpu", "max_steps": 2, "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0},
    )
    trainer.fit(training, datamodule=data)
    folder.mkdir()
    metrics = training.export(folder, data)
    training.show(folder, data)
    assert all(np.isfinite(value) for value in metrics.values())
    return folder


CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "text_cfg": {"context_length": 10, "width": 16, "heads": 2, "layers": 1},
}
GPT = {"n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}


@pytest.fixture(scope="session")
def autoencoder(shards, tmp_path_factory):
    training = AutoencoderTraining(channels=(4, 8, 8), latent_channels=2)
    data = ImageData(str(shards), size=32, batch_size=8, holdout=0.2)
    return fit(training, data, tmp_path_factory.mktemp("weights") / "autoencoder")


@pytest.fixture(scope="session")
def clip(shards, tmp_path_factory):
    data = PairData(str(shards), size=32, batch_size=8, holdout=0.2)
    return fit(ClipTraining(CLIP), data, tmp_path_factory.mktemp("weights") / "clip")


@pytest.fixture(scope="session")
def text_decoder(shards, clip, tmp_path_factory):
    training = TextDecoderTraining(str(clip), width=4, gpt=GPT, vocabulary=280, noise=0.1)
    data = CaptionData(str(shards), batch_size=8, holdout=0.3)
    return fit(training, data, tmp_path_factory.mktemp("weights") / "text_decoder")


@pytest.fixture
def image_arguments(autoencoder, clip):
    widths = {"size": 32, "downsampling": 4, "latent_channels": 2, "clip_width": 12, "patch": 2}
    return {"autoencoder": str(autoencoder), "clip": str(clip), **widths}


@pytest.fixture
def text_arguments(clip, text_decoder):
    widths = {"length": 10, "width": 4, "beams": 3, "max_new_tokens": 8}
    return {"clip": str(clip), "text_decoder": str(text_decoder), **widths}


def draw(stream, shape):
    """Noise that depends on the stream and the sample's index alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(stream)))

"""Sounds through a pretrained neural codec: EnCodec or DAC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from unidiff_audio.codec import WaveformCodec
from unidiff_core import Stream, Waveform
from unidiff_core.codec.weights import locate, read_config, require
from unidiff_core.foundation.argument import check_number, check_sizes

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODELS = {"encodec": "EncodecModel", "dac": "DacModel"}
"""Kind, as a config names it → class in transformers."""


class NeuralAudioCodec(WaveformCodec):
    """`Waveform`s ⇄ stream ``codec``: what the encoder of EnCodec or DAC gives *before* its quantiser, over time.

    The quantiser is left out both ways, as diffusion needs continuous numbers. The decoders were trained on quantised
    ones, from which these differ by what all codebooks together leave over.
    Stored and latent: ``codec`` ``[b, channels, frames]``, less `mean` and divided by `std`.

    Args:
        model: folder or hub id of a mono `transformers.EncodecModel` or `DacModel`.
        rate: its samples a second.
        seconds: duration of every encoded sound: a longer one is cut, with a warning, a shorter one filled up with
            silence.
        downsampling: samples per frame.
        channels: numbers per frame.
        patch: frames per token.
        mean: of the encoder's numbers over your sounds; `statistics` measures it.
        std: their standard deviation.

    Raises:
        ValueError: if the duration does not divide into tokens, or `std` is not positive; at first use, if the model is
            not what is declared here.
    """

    licence: ClassVar[str] = "MIT"
    sources: ClassVar[tuple[str, ...]] = (
        "Descript Audio Codec at 16 kHz, arXiv 2306.06546, hf-hub:descript/dac_16khz",
    )
    weights: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(
        self,
        model: str = "hf-hub:descript/dac_16khz",
        rate: int = 16000,
        seconds: float = 2.0,
        downsampling: int = 320,
        channels: int = 1024,
        patch: int = 1,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        check_sizes(downsampling=downsampling, channels=channels, patch=patch)
        super().__init__(rate, seconds, downsampling * patch)
        check_number("mean", mean)
        if not 0 < std < math.inf:
            raise ValueError(f"std is positive, not {std}")
        self.model, self.downsampling, self.channels, self.patch = model, downsampling, channels, patch
        self.mean, self.std = mean, std
        self._model: Any = None

    @property
    def streams(self) -> Mapping[str, Stream]:
        """``codec``: a grid over time."""
        return {"codec": Stream.grid(self.channels, self.num_samples // self.downsampling, patch=self.patch)}

    @torch.no_grad()
    def encode(self, raws: Sequence[Waveform]) -> dict[str, Tensor]:
        """Sounds → ``codec`` ``[b, channels, frames]``."""
        network = self._load()
        rows = [network.encoder(self.samples(part)[:, None]).float() for part in self._parts(raws)]
        values = torch.cat(rows) if rows else torch.empty(0, *self.streams["codec"].shape)
        return {"codec": (values - self.mean) / self.std}

    @torch.no_grad()
    def decode(self, latents: Mapping[str, Tensor]) -> list[Waveform]:
        """``codec`` → sounds of the codec's rate and duration."""
        network = self._load()
        sounds: list[Waveform] = []
        for part in self._parts(latents["codec"]):
            # As kernels have it, a few samples more or fewer come out than went in.
            samples = network.decoder(self.place(part * self.std + self.mean))[:, 0]
            sounds += self.waveforms(F.pad(samples, (0, self.num_samples - samples.shape[-1])))
        return sounds

    def statistics(self, raws: Sequence[Waveform]) -> tuple[float, float]:
        """Mean and standard deviation of the encoder's numbers over some sounds, for `mean` and `std`."""
        values = self.encode(raws)["codec"] * self.std + self.mean
        return float(values.mean()), float(values.std())

    def _load(self) -> Any:
        if self._model is None:
            self._model = self.adopt(without_weight_norm(self._checked()))
        return self._model

    def _checked(self) -> Any:
        import transformers

        folder = locate(self.model, (CONFIG, WEIGHTS))
        require(folder, CONFIG)
        kind = read_config(folder / CONFIG).get("model_type")
        if kind not in MODELS:
            raise ValueError(f"{folder / CONFIG} is of a {kind!r}; known: {', '.join(MODELS)}")
        require(folder, WEIGHTS)
        network: Any = getattr(transformers, MODELS[kind]).from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True
        )
        config = network.config
        if getattr(config, "audio_channels", 1) != 1 or getattr(config, "normalize", False):
            raise ValueError(f"{self.model} is for stereo or scales each sound by itself; give a mono one")
        found = int(config.sampling_rate), int(config.hop_length), int(config.hidden_size)
        if found != (self.rate, self.downsampling, self.channels):
            raise ValueError(
                f"{self.model} has rate {found[0]}, downsampling {found[1]} and channels {found[2]}; declared are rate "
                f"{self.rate}, downsampling {self.downsampling} and channels {self.channels}"
            )
        return network


def without_weight_norm(network: nn.Module) -> nn.Module:
    """The same network with plain weights: faster, and it can be pickled for another process."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
            module._load_state_dict_pre_hooks.clear()  # torch's weight norm leaves a local function here
    return network

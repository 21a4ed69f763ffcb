"""Sounds: a log-mel spectrogram through a small autoencoder; heard again by a vocoder."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unidiff_audio.autoencoder import MelAutoencoder
from unidiff_audio.vocoder import GriffinLimVocoder, Vocoder
from unidiff_core import FrozenCodec, Stream, Waveform
from unidiff_core.codec.waveform import fitted, from_wav, to_wav
from unidiff_core.foundation.argument import check_amounts, check_sizes

SECONDS_AT_ONCE = 60.0
"""Of sound that the networks see at a time: bounds memory, changes no result."""


class WaveformCodec(FrozenCodec):
    """What codecs of sound share: `Waveform`s of one rate and length, WAV files, and a player in reports.

    A sound at another rate is resampled. A longer one is cut, with a warning; a shorter one is filled up with silence,
    which its decoded form keeps.

    Args:
        rate: samples a second.
        seconds: duration.
        frame: samples in a token; the duration must divide into them.

    Raises:
        ValueError: if it does not; says which duration would.
    """

    raw_type: ClassVar[type | None] = Waveform
    extension: ClassVar[str] = "wav"
    widget = "audio"

    def __init__(self, rate: int, seconds: float, frame: int) -> None:
        super().__init__()
        check_sizes(rate=rate)
        check_amounts(seconds=seconds)
        tokens = seconds * rate / frame
        if round(tokens) < 1 or abs(tokens - round(tokens)) > 1e-6 * tokens:
            nearest = max(1, round(tokens)) * frame / rate
            raise ValueError(
                f"{seconds:g} s at {rate} Hz do not divide into tokens of {frame} samples; {nearest:g} s would"
            )
        self.rate, self.seconds = rate, seconds
        self.num_samples = round(seconds * rate)

    def samples(self, raws: Sequence[Waveform]) -> Tensor:
        """Sounds, one at least, → ``[b, num_samples]`` on the codec's device.

        Raises:
            ValueError: if one is not a `Waveform`.
        """
        for raw in raws:
            if not isinstance(raw, Waveform):
                raise ValueError(f"a sound must be a Waveform, not {type(raw).__name__}; unidiff_core has it")
        return self.place(torch.stack([fitted(raw, self.rate, self.num_samples) for raw in raws]))

    def waveforms(self, samples: Tensor) -> list[Waveform]:
        """``[b, n]`` → sounds, clipped to -1..1."""
        return [Waveform(row.numpy(), self.rate) for row in samples.float().clamp(-1, 1).cpu()]

    def mask(self, region: Any, raw: Waveform | None = None) -> dict[str, Tensor]:
        """A stretch ``[from, to]`` in seconds. Every cell that it touches is in it; a mapping is a range of cells.

        Raises:
            ValueError: if it is none, or not within the sound.
        """
        if isinstance(region, Mapping):
            return super().mask(region, raw)
        is_row = isinstance(region, Sequence) and not isinstance(region, str) and len(region) == 2
        if not is_row or not all(isinstance(row, int | float) for row in region):
            raise ValueError(f"the region {region!r} of a sound is [from, to] in seconds")
        start, end = region
        if not 0 <= start < end <= self.seconds:
            raise ValueError(f"the stretch {region!r} is not within the {self.seconds:g} s of a sound")
        masks = {}
        for name, shape in self.shapes.items():
            cells = torch.arange(shape[-1], dtype=torch.float64) * self.seconds / shape[-1]
            inside = (cells < end) & (cells + self.seconds / shape[-1] > start)
            masks[name] = inside.expand(shape).clone()
        return masks

    def from_bytes(self, data: bytes) -> Waveform:
        """A sound file, WAV or another → its sound, at its own rate and length; channels are averaged.

        Raises:
            ValueError: if it is not such a file; says why.
        """
        return from_wav(data)

    def to_bytes(self, raw: Waveform) -> bytes:
        """Sound → WAV, mono, 16-bit PCM."""
        return to_wav(raw)

    def html(self, raw: Waveform) -> str:
        """A player."""
        data = base64.b64encode(self.to_bytes(raw)).decode()
        return f'<audio controls style="width: 100%" src="data:audio/wav;base64,{data}"></audio>'

    def distance(self, a: Waveform, b: Waveform) -> float:
        """The largest difference of two samples; infinite if the sounds differ in rate or duration."""
        if (a.rate, a.samples.shape) != (b.rate, b.samples.shape):
            return math.inf
        return float(np.abs(a.samples - b.samples).max(initial=0.0))

    def _parts(self, rows: Any) -> list[Any]:
        count = max(1, int(SECONDS_AT_ONCE / self.seconds))
        return [rows[i : i + count] for i in range(0, len(rows), count)]


class AudioCodec(WaveformCodec):
    """`Waveform`s ⇄ stream ``mel``: a small autoencoder's code of the log-mel spectrogram, a grid over time.

    Stored and latent: ``mel`` ``[b, channels, cells]``, of mean 0 and variance 1 per channel over the training sounds.
    The phases are not encoded: a vocoder makes them.

    Args:
        autoencoder: folder or hub id of a `MelAutoencoder`; `unidiffuser fit-codec` makes one.
        rate: samples a second.
        seconds: duration of every encoded sound: a longer one is cut, with a warning, a shorter one filled up with
            silence.
        hop: samples from one frame of the spectrogram to the next.
        downsampling: frames per cell.
        channels: numbers per cell.
        patch: cells per token.
        vocoder: makes waveforms of spectrograms; Griffin-Lim if not given.

    Raises:
        ValueError: if the duration does not divide into tokens; at first use, if the autoencoder is not what is
            declared here.
    """

    licence: ClassVar[str] = "none needed: it has no weights but your own"
    sources: ClassVar[tuple[str, ...]] = ("`unidiffuser fit-codec` with unidiff_audio.training",)
    weights: ClassVar[tuple[str, ...]] = ("autoencoder",)

    def __init__(
        self,
        autoencoder: str = "weights/mel_autoencoder",
        rate: int = 16000,
        seconds: float = 2.048,
        hop: int = 256,
        downsampling: int = 8,
        channels: int = 16,
        patch: int = 1,
        vocoder: Vocoder | None = None,
    ) -> None:
        check_sizes(hop=hop, downsampling=downsampling, channels=channels, patch=patch)
        super().__init__(rate, seconds, hop * downsampling * patch)
        self.autoencoder, self.hop, self.downsampling = autoencoder, hop, downsampling
        self.channels, self.patch = channels, patch
        self.vocoder = vocoder if vocoder is not None else GriffinLimVocoder()
        self._autoencoder: MelAutoencoder | None = None

    @property
    def streams(self) -> Mapping[str, Stream]:
        """``mel``: a grid over time."""
        cells = self.num_samples // (self.hop * self.downsampling)
        return {"mel": Stream.grid(self.channels, cells, patch=self.patch)}

    @torch.no_grad()
    def encode(self, raws: Sequence[Waveform]) -> dict[str, Tensor]:
        """Sounds → ``mel`` ``[b, channels, cells]``."""
        network = self._load()
        codes = [network.encode(network.mel(self.samples(part))).float() for part in self._parts(raws)]
        return {"mel": torch.cat(codes) if codes else torch.empty(0, *self.streams["mel"].shape)}

    @torch.no_grad()
    def decode(self, latents: Mapping[str, Tensor]) -> list[Waveform]:
        """``mel`` → sounds of the codec's rate and duration."""
        network = self._load()
        sounds: list[Waveform] = []
        # One by one, which takes no longer: Griffin-Lim lets one hear how a batch of another size is rounded.
        for latent in latents["mel"]:
            magnitudes = network.mel.magnitudes(network.decode(self.place(latent)[None]))
            sounds += self.waveforms(self.vocoder(magnitudes, network.mel))
        return sounds

    def _load(self) -> MelAutoencoder:
        if self._autoencoder is None:
            network = MelAutoencoder.from_pretrained(self.autoencoder)
            names = ("rate", "hop", "downsampling", "channels")
            wrong = [name for name in names if getattr(network, name) != getattr(self, name)]
            if wrong:
                found, declared = (
                    ", ".join(f"{name} {getattr(row, name)}" for name in wrong) for row in (network, self)
                )
                raise ValueError(f"the autoencoder {self.autoencoder} has {found}; declared are {declared}")
            self._autoencoder = self.adopt(network)
        return self._autoencoder

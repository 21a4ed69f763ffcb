"""A raw sound, WAV files, and sounds of one length and rate for a network."""

from __future__ import annotations

import io
import warnings
import wave
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Waveform:
    """A mono sound.

    Attributes:
        samples: float32 ``[n]``, in -1..1; any array or tensor is taken.
        rate: samples a second.

    Raises:
        ValueError: if the samples are not of one dimension or not finite, or the rate is not positive.
    """

    samples: np.ndarray
    rate: int

    def __post_init__(self) -> None:
        samples = np.asarray(self.samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"a waveform is mono, of shape [n], not {list(samples.shape)}; average its channels first")
        if not np.isfinite(samples).all():
            raise ValueError("a waveform has samples that are not finite")
        if self.rate < 1:
            raise ValueError(f"the rate of a waveform is at least 1 sample a second, not {self.rate}")
        object.__setattr__(self, "samples", samples)

    @property
    def seconds(self) -> float:
        """Its duration."""
        return len(self.samples) / self.rate


def from_wav(data: bytes) -> Waveform:
    """A WAV file of integer PCM, 8 to 32 bits; its channels are averaged.

    Raises:
        ValueError: if it is not one; says why.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError) as error:
        reason = str(error) or "it ends too early"
        raise ValueError(f"not a readable WAV file of integer PCM ({len(data)} bytes): {reason}") from error
    whole = frames[: len(frames) // (channels * width) * channels * width]  # a file may be cut off within a frame
    if not whole:
        raise ValueError(f"the WAV file ({len(data)} bytes) holds no samples")
    return Waveform(_from_pcm(whole, width).reshape(-1, channels).mean(axis=1), rate)


def _from_pcm(frames: bytes, width: int) -> np.ndarray:
    """Little-endian integers of `width` bytes → -1..1; those of one byte are unsigned, as WAV has it."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8) - 128.0) / 128
    places = np.zeros((len(frames) // width, 4), np.uint8)
    places[:, 4 - width :] = np.frombuffer(frames, np.uint8).reshape(-1, width)
    return places.view("<i4")[:, 0] / 2.0**31


def to_wav(waveform: Waveform) -> bytes:
    """A WAV file: mono, 16-bit PCM. What is beyond -1..1 is clipped."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(waveform.rate)
        file.writeframes(np.rint(waveform.samples * 2.0**15).clip(-(2**15), 2**15 - 1).astype("<i2").tobytes())
    return stream.getvalue()


def fitted(waveform: Waveform, rate: int, num_samples: int) -> Tensor:
    """Its samples ``[num_samples]`` at `rate`: resampled if need be, cut with a warning, or filled up with silence."""
    samples = torch.from_numpy(waveform.samples)
    if waveform.rate != rate:
        from torchaudio.functional import resample

        samples = resample(samples, waveform.rate, rate)
    if len(samples) > num_samples:
        warnings.warn(
            f"a sound of {waveform.seconds:.3g} s is cut at the {num_samples / rate:.3g} s that the codec encodes",
            stacklevel=4,
        )
    return torch.nn.functional.pad(samples, (0, num_samples - len(samples)))

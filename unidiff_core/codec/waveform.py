"""A raw sound, WAV files (by soundfile), and sounds of one length and rate for a network."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

BLOCK = 2**16
"""Samples that are read at a time."""
RATIO = 2**22
"""Bound of numerator times denominator of a ratio of rates: of the numbers in a resampling filter."""
REACH = 32
"""Input samples, in periods of the lower rate, that are kept beyond a cut: more than the filter looks ahead."""


@dataclass(frozen=True, eq=False)
class Waveform:
    """A mono sound.

    Attributes:
        samples: float32 ``[n]``, in -1..1; any array or tensor is taken.
        rate: samples a second.

    Raises:
        ValueError: if there are no samples, they are not of one dimension or not finite, or the rate is not positive.
    """

    samples: np.ndarray
    rate: int

    def __post_init__(self) -> None:
        samples = np.asarray(self.samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"a waveform is mono, of shape [n], not {list(samples.shape)}; average its channels first")
        if not len(samples):
            raise ValueError("a waveform has at least one sample")
        if not np.isfinite(samples).all():
            raise ValueError("a waveform has samples that are not finite")
        if self.rate < 1:
            raise ValueError(f"the rate of a waveform is at least 1 sample a second, not {self.rate}")
        object.__setattr__(self, "samples", samples)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Its samples, where numpy wants an array."""
        return np.array(self.samples, dtype=dtype, copy=copy)

    @property
    def seconds(self) -> float:
        """Its duration."""
        return len(self.samples) / self.rate


def from_wav(data: bytes) -> Waveform:
    """A sound file, WAV or whatever else soundfile reads; its channels are averaged. A WAV file that is cut ends there.

    Raises:
        ValueError: if it is not one; says why.
    """
    import soundfile

    parts: list[np.ndarray] = []
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            # Bit by bit: a damaged header may promise more than any memory holds.
            while len(part := file.read(BLOCK, dtype="float64", always_2d=True)):
                parts.append(part.mean(axis=1))
    except (soundfile.SoundFileError, TypeError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise ValueError(f"not a readable sound file ({len(data)} bytes): {reason}") from error
    if not parts:
        raise ValueError(f"the sound file ({len(data)} bytes) holds no samples")
    return Waveform(np.concatenate(parts), rate)


def to_wav(waveform: Waveform) -> bytes:
    """A WAV file: mono, 16-bit PCM. What is beyond -1..1 is clipped."""
    import soundfile

    frames = np.rint(waveform.samples * 2.0**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    stream = io.BytesIO()
    soundfile.write(stream, frames, waveform.rate, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def fitted(waveform: Waveform, rate: int, num_samples: int) -> Float32[Tensor, " num_samples"]:
    """Its samples at `rate`: cut with a warning, resampled if need be, or filled up with silence.

    Two rates of no small ratio (44101 and 8000) are taken for the nearest that `RATIO` allows, off by 1 in 4096 at
    most: 0.4 hundredths of a semitone.

    Raises:
        ValueError: if it is at another rate, and there is no torchaudio to resample it.
    """
    samples = torch.from_numpy(waveform.samples)
    if -(-len(samples) * rate // waveform.rate) > num_samples:
        warnings.warn(
            f"a sound of {waveform.seconds:.3g} s is cut at the {num_samples / rate:.3g} s that the codec encodes",
            stacklevel=4,
        )
    if waveform.rate != rate:
        ratio = max(1.0, waveform.rate / rate)
        samples = samples[: math.ceil(num_samples * waveform.rate / rate) + math.ceil(REACH * ratio)]
        samples = _resampled(samples, waveform.rate, rate)
    return torch.nn.functional.pad(samples, (0, num_samples - len(samples)))


def _resampled(samples: Tensor, old: int, new: int) -> Tensor:
    try:
        from torchaudio.functional import resample
    except ImportError as error:
        raise ValueError(f"a sound of {old} Hz is resampled by torchaudio: pip install it") from error
    high, low = max(old, new), min(old, new)
    bound = max(1, math.isqrt(RATIO * low // high))
    nearest = Fraction(high, low).limit_denominator(bound)
    ratio = nearest if old > new else 1 / nearest
    return resample(samples, ratio.numerator, ratio.denominator)

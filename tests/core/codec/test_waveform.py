"""Sound files, written here byte by byte as their formats say, and read back."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
import soundfile
import torch

from unidiff_core import Waveform
from unidiff_core.codec.waveform import BLOCK, fitted, from_wav, to_wav

VALUES = np.array([[-1.0, 0.5], [0.25, 0.25], [0.0, -0.5]])
"""Three frames of two channels."""
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
GUID = bytes.fromhex("000000001000800000aa00389b71")
"""What follows the format's tag in an extensible header."""


def pcm(values, width):
    """Little-endian integers; those of one byte are unsigned."""
    integers = (values * 2 ** (8 * width - 1)).clip(None, 2 ** (8 * width - 1) - 1).astype("<i8") + 128 * (width == 1)
    return b"".join(int(x).to_bytes(8, "little", signed=True)[:width] for x in integers.ravel())


def wav(tag, width, frames, *, channels=2, rate=11025, extensible=False):
    """A WAV file: RIFF, a header, and the frames."""
    header = struct.pack("<HIIHH", channels, rate, rate * channels * width, channels * width, 8 * width)
    if extensible:
        more = struct.pack("<HHIH", 22, 8 * width, 3, tag) + GUID
        header = struct.pack("<H", EXTENSIBLE) + header + more
    else:
        header = struct.pack("<H", tag) + header
    chunks = b"fmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(frames)) + frames
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def tone(count=400, rate=8000):
    return Waveform(0.5 * np.sin(np.arange(count) / 3), rate)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(
    ("tag", "width", "frames", "tolerance"),
    [
        *((PCM, width, pcm(VALUES, width), 2.0 ** (1 - 8 * width)) for width in (1, 2, 3, 4)),
        (FLOAT, 4, VALUES.astype("<f4").tobytes(), 0),
        (FLOAT, 8, VALUES.astype("<f8").tobytes(), 0),
    ],
    ids=["8 bits", "16 bits", "24 bits", "32 bits", "float", "double"],
)
def test_a_wav_of_any_form_is_read_and_its_channels_are_averaged(tag, width, frames, tolerance, extensible):
    sound = from_wav(wav(tag, width, frames, extensible=extensible))
    assert sound.rate == 11025 and sound.samples.dtype == np.float32
    np.testing.assert_allclose(sound.samples, VALUES.mean(axis=1), atol=tolerance)


def test_one_channel_and_six():
    mono = from_wav(wav(PCM, 2, pcm(VALUES[:, 0], 2), channels=1))
    np.testing.assert_allclose(mono.samples, VALUES[:, 0], atol=2**-15)
    six = np.arange(18).reshape(3, 6) / 32
    np.testing.assert_allclose(from_wav(wav(FLOAT, 8, six.tobytes(), channels=6)).samples, six.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(("form", "tolerance"), [("FLAC", 1e-4), ("AIFF", 1e-4), ("OGG", 0.05)])
def test_other_files_of_sound_are_read_too(form, tolerance):
    stream = io.BytesIO()
    soundfile.write(stream, np.stack([tone().samples, tone().samples / 2], axis=1), 16000, format=form)
    sound = from_wav(stream.getvalue())
    assert sound.rate == 16000
    np.testing.assert_allclose(sound.samples, 0.75 * tone().samples, atol=tolerance)


def test_a_long_sound_is_read_whole():
    sound = tone(2 * BLOCK + 3)
    np.testing.assert_allclose(from_wav(to_wav(sound)).samples, sound.samples, atol=2**-15)


def test_what_was_read_is_written_back_bit_for_bit():
    data = to_wav(tone())
    assert to_wav(from_wav(data)) == data == wav(PCM, 2, data[44:], channels=1, rate=8000)
    assert from_wav(to_wav(Waveform(np.array([2.0, -2.0]), 8000))).samples.tolist() == [1 - 2**-15, -1]


def test_a_wav_that_is_cut_ends_there():
    whole = wav(PCM, 2, pcm(VALUES, 2))
    for cut in (1, 2, 3, 4):  # bytes, of frames of 4
        np.testing.assert_allclose(from_wav(whole[:-cut]).samples, VALUES[:2].mean(axis=1), atol=2**-15)


BAD = {
    "nothing": b"",
    "no sound": b"not a sound",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(60),
    "half a header": to_wav(tone())[:30],
    "no samples": to_wav(tone())[:44],
    "half a sample": to_wav(tone())[:45],
    "an unknown form": wav(0x1234, 2, pcm(VALUES, 2)),
    "no channel": wav(PCM, 2, pcm(VALUES, 2), channels=0),
    "not finite": wav(FLOAT, 4, np.array([[0.0, np.nan]], dtype="<f4").tobytes()),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_no_sound_file_is_refused_in_a_sentence(data):
    with pytest.raises(ValueError, match=r"sound file \(\d+ bytes\)|not finite") as caught:
        from_wav(data)
    said = str(caught.value)
    assert "0x" not in said and "BytesIO" not in said and "\n" not in said and not said.endswith("."), said


def test_a_header_that_promises_too_much_is_not_believed():
    stream = io.BytesIO()
    soundfile.write(stream, tone().samples, 8000, format="FLAC")
    data = bytearray(stream.getvalue())
    data[21:26] = bytes([data[21] | 0x0F, *b"\xff\xff\xff\xff"])  # 2^36 samples
    with pytest.raises(ValueError, match="not a readable sound file"):
        from_wav(bytes(data))


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [(np.zeros((2, 5)), 8000, r"\[2, 5\]"), ([0.0, np.nan], 8000, "not finite"), ([0.0], 0, "at least 1 sample")],
)
def test_a_waveform_is_checked(samples, rate, message):
    with pytest.raises(ValueError, match=message):
        Waveform(samples, rate)


def test_a_waveform_is_an_array_to_numpy():
    sound = tone()
    assert np.asarray(sound) is sound.samples and sound.seconds == 0.05
    assert np.stack([sound, sound]).shape == (2, 400) and np.asarray(sound, dtype=float).dtype == np.float64


def test_a_sound_is_filled_up_or_cut_with_a_warning():
    short = fitted(tone(800), 8000, 1024)
    assert short[:800].abs().max() > 0.4 and not short[800:].any()
    with pytest.warns(UserWarning, match=r"a sound of 0.2 s is cut at the 0.128 s"):
        assert len(fitted(tone(1600), 8000, 1024)) == 1024


def test_resampling_without_torchaudio_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(ValueError, match="a sound of 8000 Hz is resampled by torchaudio: pip install it"):
        fitted(tone(), 16000, 1024)


@pytest.mark.parametrize("old", [44101, 47999, 7919, 192000, 2**31 - 1])
def test_the_work_of_an_unusual_rate_is_bounded(old):
    pytest.importorskip("torchaudio")
    sound = Waveform(np.sin(2 * np.pi * 440 * np.arange(min(old, 200_000)) / old), old)
    started = time.monotonic()
    samples = fitted(sound, 8000, 4000).numpy()
    assert time.monotonic() - started < 2
    if old < 200_000:
        expected = np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
        assert abs(samples - expected)[50:-50].max() < 2 * np.pi * 440 * 0.5 / 4096, "no more off than is said"


@pytest.mark.parametrize("old", [44100, 48000, 11025, 4000])
def test_cutting_before_resampling_changes_nothing(old):
    resample = pytest.importorskip("torchaudio").functional.resample
    noise = np.random.default_rng(0).uniform(-1, 1, 3 * old)
    with pytest.warns(UserWarning, match="a sound of 3 s is cut at the 0.5 s"):
        samples = fitted(Waveform(noise, old), 8000, 4000)
    whole = resample(torch.from_numpy(noise).float(), old, 8000)[:4000]
    assert (samples - whole).abs().max() < 1e-6
